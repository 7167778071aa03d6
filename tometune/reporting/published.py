"""The published table that this project questions: its numbers, a conclusion from them, and a figure."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from matplotlib.ticker import MaxNLocator

from tometune.evaluation.metrics import label
from tometune.evaluation.statistics import seeds_needed
from tometune.reporting.conclusions import between, data_label, models, p_value, signed, tuned_rows
from tometune.reporting.figures import SLANTED, STEPS, colour_of, draw_legend, draw_mean, short_labels
from tometune.reporting.html import GRID, MUTED, PAPER, WIDTH, as_svg, panels
from tometune.reporting.score_files import ROUGE
from tometune.runs.inputs import ADDED


class PublishedRow(NamedTuple):
    """One row of the published table (Llama-3.2-3B-Instruct, 4 bits): ROUGE-1, -2 and -L over three runs."""

    data: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


PUBLISHED = (
    PublishedRow("100k: FineTome-100k", (0.407, 0.163, 0.300), (0.012, 0.003, 0.007)),
    PublishedRow("200k: + 100k rows of The-Tome", (0.402, 0.157, 0.301), (0.019, 0.020, 0.009)),
    PublishedRow("300k: + 200k rows of The-Tome", (0.397, 0.146, 0.304), (0.019, 0.011, 0.006)),
)
RUNS = 3  # behind each mean of the published table


def over_own_file(table: Mapping[str, Any]) -> bool:
    """Tell whether a sweep adds rows to somebody's own file, of which the published table says nothing."""
    return any(ADDED in row["data"] for row in table["rows"])


def published_answer(confidence: float) -> str:
    """Return a conclusion about 300k - 100k from the published means and deviations alone (Welch's test)."""
    from scipy.stats import t

    first, last = PUBLISHED[0], PUBLISHED[-1]
    differences, needed = [], []
    for metric, a, a_sd, b, b_sd in zip(ROUGE, last.mean, last.std, first.mean, first.std, strict=True):
        variances = a_sd**2, b_sd**2
        error = (sum(variances) / RUNS) ** 0.5
        freedom = (RUNS - 1) * sum(variances) ** 2 / sum(variance**2 for variance in variances)
        half = t.ppf((1 + confidence) / 2, freedom) * error
        p = 2 * t.sf(abs(a - b) / error, freedom)
        interval = between({"ci_low": a - b - half, "ci_high": a - b + half})
        differences.append(f"{label(metric)} {signed(a - b)} ({interval}, {p_value(p)})")
        needed.append(seeds_needed(sum(variances) ** 0.5, 0.01, alpha=1 - confidence, paired=False) or 100_000)
    return (
        f"300k vs. 100k in the published table: {', '.join(differences)}. The intervals are Welch's, computed from the "
        "published means and standard deviations of three runs each, without correction. With such deviations, "
        f"detecting a difference of 0.01 takes {min(needed)} to {max(needed)} runs per arm."
    )


def published(table: Mapping[str, Any]) -> str:
    """Draw the published means and deviations (hollow, grey) next to those of this sweep (filled)."""
    figure, axes = panels(1, len(ROUGE), WIDTH, 3.3)
    tuned, names = tuned_rows(table), models(table)
    short = short_labels(tuned)
    texts = [
        *(f"published {entry.data.partition(':')[0]}" for entry in PUBLISHED),
        "",
        *(short[data_label(row)] for row in tuned),
    ]
    first = len(PUBLISHED) + 1
    for number, (axis, metric) in enumerate(zip(axes[0], ROUGE, strict=True)):
        axis.set_title(label(metric))
        for place, entry in enumerate(PUBLISHED):
            ends = entry.mean[number] - entry.std[number], entry.mean[number] + entry.std[number]
            axis.plot([place, place], ends, color=MUTED, linewidth=1.4)
            axis.plot([place], [entry.mean[number]], "D", markersize=6, color=PAPER, markeredgecolor=MUTED)
        for place, row in enumerate(tuned, first):
            mean, deviation = row[metric]["mean"], row[metric]["std"] or 0.0
            draw_mean(axis, place, mean, (mean - deviation, mean + deviation), colour_of(names, row["model"]))
        axis.axvline(len(PUBLISHED), color=GRID, linewidth=0.8)
        axis.set_xticks(range(len(texts)), texts, **SLANTED)
        axis.yaxis.set_major_locator(MaxNLocator(5, steps=STEPS))
        axis.margins(y=0.12)
    draw_legend(figure, table)
    description = "Mean and standard deviation over three runs of the published table, next to those of this sweep."
    return as_svg(figure, "published", description)
