"""mix.html: one file, without a script or any reference outside of itself.

Texts of rows are data of others: they are escaped, Markdown stays text, and the page forbids itself to load or run
anything.
"""

from collections.abc import Mapping
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from tometune.data.profile import Profile
from tometune.reporting.curves import stacked
from tometune.reporting.datacard import figures
from tometune.reporting.page import environment

CARD = "datacard/card.html.jinja"

SHOWN = 700
"""Characters of a turn that are shown unasked."""

KEPT = 20_000
"""Characters of a turn that are on the page at all."""


def card_page(card: Mapping[str, Any], mix: Profile, max_length: int | None) -> str:
    """Return the page of a mix.

    Args:
        card: `content.card`.
        mix: the values of its rows.
        max_length: tokens at which rows were cut.
    """
    shared = {
        figures.label(task["task"]): {figures.label(name): count for name, count in task["sources"].items()}
        for task in card["contamination"]["tasks"]
        if task["rows"]
    }
    with figures.drawing():
        steps = {origin: figures.steps(rows, origin) for origin, rows in card["ways"].items()}
        pictures = {
            "composition": Markup(figures.composition(mix)),  # noqa: S704 - drawn by us
            "shapes": Markup(figures.shapes(mix, max_length)),  # noqa: S704
            "overlaps": Markup(stacked(shared)) if shared else None,  # noqa: S704
            "steps": {origin: svg and Markup(svg) for origin, svg in steps.items()},  # noqa: S704
        }
    return _templates().get_template(CARD).render(card=card, pictures=pictures, max_length=max_length)


def _templates() -> Environment:
    """Return what reads the templates."""
    made = environment()
    made.filters |= {"much": much, "folded": folded}
    return made


def much(number: float) -> str:
    """Return a large number in three digits: `61.2 million`."""
    for size, word in ((1e9, "billion"), (1e6, "million")):
        if number >= size:
            return f"{number / size:.3g} {word}"
    return f"{number:,.0f}"


def folded(text: str) -> dict[str, Any]:
    """Return the part of a turn that is shown, the part that is folded away, and how much is left out of the page."""
    if len(text) <= SHOWN * 1.3:
        return {"head": text, "tail": "", "more": 0, "cut": 0}
    return {
        "head": text[:SHOWN],
        "tail": text[SHOWN:KEPT],
        "more": len(text) - SHOWN,
        "cut": max(len(text) - KEPT, 0),
    }
