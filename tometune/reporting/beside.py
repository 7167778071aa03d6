"""The picture of the published figures beside those of a sweep."""

from collections.abc import Mapping
from typing import Any

from matplotlib.ticker import MaxNLocator

from tometune.reporting.drawing import ACCENTS, GRID, INK, MUTED, PAPER, as_svg, panels
from tometune.reporting.figures import STEPS, legend, models, short_labels
from tometune.reporting.phrases import LABELS
from tometune.reporting.published import PUBLISHED
from tometune.reporting.scores import METRICS
from tometune.reporting.tables import data_label

CROWDED = 4
"""With more cells the mixes are called by their rows."""


def published(table: Mapping[str, Any]) -> str:
    """Draw the published means and deviations (hollow, grey) beside ours (filled), each in its own panel pair."""
    figure, axes = panels(1, len(METRICS), 9.6, 3.3)
    tuned = [row for row in table["rows"] if row["stage"] == "tuned"]
    names = models(table)
    short = dict(
        zip(dict.fromkeys(map(data_label, tuned)), short_labels(tuned, small=len(tuned) > CROWDED), strict=True)
    )
    ours = [short[data_label(row)] for row in tuned]
    for number, (axis, metric) in enumerate(zip(axes[0], METRICS, strict=True)):
        axis.set_title(LABELS[metric], pad=24)
        for place, entry in enumerate(PUBLISHED):
            ends = [entry.mean[number] - entry.std[number], entry.mean[number] + entry.std[number]]
            axis.plot([place, place], ends, color=MUTED, linewidth=1.4)
            axis.plot([place], [entry.mean[number]], "D", markersize=6, color=PAPER, markeredgecolor=MUTED)
        for place, row in enumerate(tuned, len(PUBLISHED) + 1):
            colour = ACCENTS[names.index(row["model"]) % len(ACCENTS)]
            mean, deviation = row[metric]["mean"], row[metric]["std"] or 0.0
            axis.plot([place, place], [mean - deviation, mean + deviation], color=colour, linewidth=2, alpha=0.45)
            axis.plot([place], [mean], "o", color=colour, markersize=7, markeredgecolor=PAPER)
        axis.axvline(len(PUBLISHED), color=GRID, linewidth=0.8)
        labels = [*(entry.data.split(":")[0] for entry in PUBLISHED), *ours]
        places = [*range(len(PUBLISHED)), *range(len(PUBLISHED) + 1, len(PUBLISHED) + 1 + len(tuned))]
        axis.set_xticks(places, labels, rotation=35, ha="right", rotation_mode="anchor")
        axis.text(1, 1.02, "published", transform=axis.get_xaxis_transform(), ha="center", color=MUTED)
        middle = len(PUBLISHED) + (len(tuned) + 1) / 2
        axis.text(middle, 1.02, "this sweep", transform=axis.get_xaxis_transform(), ha="center", color=INK)
        axis.yaxis.set_major_locator(MaxNLocator(5, steps=STEPS))
        axis.margins(y=0.12)
    legend(figure, table)
    description = "Mean and standard deviation over three runs of the published table, beside those of this sweep."
    return as_svg(figure, "published", description)
