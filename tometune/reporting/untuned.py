"""The model before training in a panel of scores: a line with its name, or where it would be."""

from collections.abc import Sequence

from matplotlib.axes import Axes

from tometune.reporting.drawing import ACCENTS, MUTED

FAR = 1.6
"""The untuned model's score is drawn if the axis grows by no more than this factor; else it is written at the edge."""


def before_lines(
    axis: Axes,
    bases: Sequence[tuple[int, float]],
    low: float,
    high: float,
    taken: Sequence[tuple[float, float]],
) -> tuple[float, float]:
    """Draw the untuned models as lines where they are near, else say where they are; returns the axis' ends.

    Args:
        axis: the panel.
        bases: number of the model and its score.
        low: end of the axis as the cells need it.
        high: the other end.
        taken: intervals at both ends of the panel; a line's name stands where none is, above the line or below it.
    """
    lines = []
    for number, value in bases:
        colour = ACCENTS[number % len(ACCENTS)] if len(bases) > 1 else MUTED
        reach = max(high, value) - min(low, value)
        if reach > FAR * (high - low):
            under, room = value < low, 0.11 * (high - low)
            low, high = (low - room, high) if under else (low, high + room)
            height, side = (low + room / 4, "bottom") if under else (high - room / 4, "top")
            text = f"before {value:.3f} {'↓' if under else '↑'}"
            axis.text(-0.55, height, text, color=colour, fontsize=8.5, va=side)
            continue
        margin = 0.06 * reach
        low, high = min(low, value - margin), max(high, value + margin)
        lines.append((value, colour))
    for value, colour in lines:
        axis.axhline(value, color=colour, linewidth=1.1, linestyle=(0, (3, 3)))
        right, below = spot(value, low, high, taken)
        axis.annotate(f"before {value:.3f}", (0.99 if right else 0.01, value), (0, -3 if below else 3),
            xycoords=("axes fraction", "data"), textcoords="offset points", color=colour, fontsize=8.5,
            ha="right" if right else "left", va="top" if below else "bottom")  # fmt: skip
    return low, high


def spot(value: float, low: float, high: float, taken: Sequence[tuple[float, float]]) -> tuple[bool, bool]:
    """Return whether a line's name stands on the right, and whether below it: the first place without an interval."""
    height = 0.12 * (high - low)
    for below in (False, True):
        bottom, top = (value - height, value) if below else (value, value + height)
        for side, (start, end) in enumerate((taken[0], taken[-1])):
            if (end < bottom or start > top) and low <= bottom and top <= high:
                return bool(side), below
    return False, False
