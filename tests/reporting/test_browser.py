"""report.html and a data card in a real browser."""

import re
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

from tests.browser import needs_browser, opened
from tests.data.conftest import mix_of  # noqa: F401
from tests.reporting.sweeps import write_table
from tests.reporting.test_data_card import EVIL, card_of, evil_mix
from tometune.data.mix import Mix
from tometune.reporting.analysis import build
from tometune.reporting.report_files import write

pytestmark = needs_browser

TEXTS = "h1, h2, p, td, th, li, caption, figcaption, summary, svg text"

# [colour, background, text] of every text, with colours as [red, green, blue].
COLOURS = """
selector => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const parts = colour => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const behind = element => {
    const colour = getComputedStyle(element).backgroundColor;
    return colour === 'rgba(0, 0, 0, 0)' && element.parentElement ? behind(element.parentElement) : colour;
  };
  return [...document.querySelectorAll(selector)].filter(each => each.textContent.trim()).map(each => {
    const style = getComputedStyle(each);
    const colour = each.closest('svg') ? style.fill : style.color;
    return [parts(colour), parts(behind(each)), each.textContent.trim().slice(0, 40)];
  });
}
"""

BOXES = """
() => [...document.querySelectorAll('figure svg')].map(svg => [...svg.querySelectorAll('text')].map(each => {
  const {left, right, top, bottom} = each.getBoundingClientRect();
  return {left, right, top, bottom, text: each.textContent};
}))
"""

# How far the first and the last cell of each table move if the table is scrolled by 40 pixels.
SCROLLED = """
() => [...document.querySelectorAll('.scroll')].filter(each => each.scrollWidth > each.clientWidth + 40).map(each => {
  const cells = [...each.querySelectorAll('thead th')].filter(cell => cell.offsetWidth);
  const places = () => [cells[0], cells.at(-1)].map(cell => cell.getBoundingClientRect().left);
  const before = places();
  each.scrollLeft = 40;
  return places().map((place, number) => Math.round(place - before[number]));
})
"""

SLANTED = re.compile(r"^(base|pydocs_\dk$)")  # the box of a slanted label says nothing about overlaps


def luminance(colour: list[int]) -> float:
    """As WCAG 2.2 defines it (https://www.w3.org/TR/WCAG22/#dfn-relative-luminance)."""
    parts = [part / 255 / 12.92 if part <= 10 else ((part / 255 + 0.055) / 1.055) ** 2.4 for part in colour]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def contrast(one: list[int], two: list[int]) -> float:
    dark, light = sorted((luminance(one), luminance(two)))
    return (light + 0.05) / (dark + 0.05)


def overlap(one: dict, two: dict) -> bool:
    """Tell whether two labels overlap by more than two pixels in both directions."""
    width = min(one["right"], two["right"]) - max(one["left"], two["left"])
    height = min(one["bottom"], two["bottom"]) - max(one["top"], two["top"])
    return min(width, height) > 2


def test_a_report_in_light_and_dark_wide_and_narrow(tmp_path: Path):
    """It loads nothing else, labels do not overlap, every text has contrast, nothing is wider than the window.

    On a phone the panels of a figure are below each other, and a table that is scrolled keeps its first column.
    """
    names = [f"pydocs_instruction_following_{number}" for number in range(9)]
    runs = write_table(tmp_path / "table", effect=0.004, tasks=names)
    (runs[0] / "run.json").write_text("{")  # a missing run, which adds a row and a caution
    url = write(build(tmp_path / "table", 200, 0.95)).as_uri()
    with opened(url) as seen:
        page = seen.page
        assert (seen.errors, seen.requests) == ([], [url])
        boxes = [picture.bounding_box() for picture in page.locator(".panels").all()]
        assert len(boxes) == 3
        assert all(box["width"] > 600 and box["height"] > 80 for box in boxes), boxes
        for texts in page.evaluate(BOXES):
            straight = [text for text in texts if not SLANTED.search(text["text"])]
            assert [pair for pair in combinations(straight, 2) if overlap(*pair)] == []
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            found = page.evaluate(COLOURS, TEXTS)
            assert (luminance(found[0][1]) > 0.8) == (scheme == "light")
            assert len(found) > 200
            assert [text for text in found if contrast(text[0], text[1]) < 4.5] == []
        page.set_viewport_size({"width": 360, "height": 1000})
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        boxes = [part.bounding_box() for part in page.locator(".bars b, .panels svg").all()]
        assert all(box["x"] >= 0 and box["x"] + box["width"] <= 360 for box in boxes), boxes
        panels = [panel.bounding_box() for panel in page.locator(".panels").first.locator("svg").all()]
        assert len(panels) == 3
        assert panels[0]["y"] + panels[0]["height"] <= panels[1]["y"]
        shifts = page.evaluate(SCROLLED)
        assert len(shifts) > 3
        assert {(first, others) for first, others in shifts} == {(0, -40)}


def test_a_data_card_fits_a_phone_and_requests_nothing(mix_of: Callable[..., Mix], tmp_path: Path):  # noqa: F811
    path = tmp_path / "mix.html"
    path.write_text(card_of(evil_mix(mix_of))[1], encoding="utf-8")
    with opened(path.as_uri()) as seen:
        for width in (1200, 400):
            seen.page.set_viewport_size({"width": width, "height": 1000})
            assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
        assert seen.page.locator(".row").count() == 10
        assert seen.page.locator(".panels, .bars").count() == 2
        assert EVIL in seen.page.locator(".turn pre").first.inner_text()
        assert (seen.errors, seen.requests) == ([], [path.as_uri()])
