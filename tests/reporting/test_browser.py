"""report.html in a real browser."""

import re
from pathlib import Path

import pytest

from tests.browser import needs_browser, opened
from tests.reporting.sweeps import write_table
from tometune.reporting.analysis import build
from tometune.reporting.page import write

pytestmark = needs_browser

PICTURES = 6

# Contrast of two colours as WCAG 2.2 defines it (https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio).
LUMINANCE = """
(() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  window.luminance = colour => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    const parts = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map(part => part / 255)
      .map(part => part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
  };
  window.contrast = (one, two) => {
    const [dark, light] = [luminance(one), luminance(two)].sort((a, b) => a - b);
    return (light + 0.05) / (dark + 0.05);
  };
})()
"""

TEXTS = """
() => {
  const paper = getComputedStyle(document.body).backgroundColor;
  const behind = element => {
    for (let at = element; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if (colour !== 'rgba(0, 0, 0, 0)') return colour;
    }
    return paper;
  };
  return [...document.querySelectorAll('h1, h2, p, td, th, li, caption, figcaption, summary, svg text')]
    .filter(each => each.textContent.trim())
    .map(each => {
      const style = getComputedStyle(each);
      const colour = each.closest('svg') ? style.fill : style.color;
      return [contrast(colour, behind(each)), each.textContent.trim().slice(0, 40), colour];
    });
}
"""

BOXES = """
() => [...document.querySelectorAll('figure svg')].map(svg => [...svg.querySelectorAll('text')].map(each => {
  const {left, right, top, bottom} = each.getBoundingClientRect();
  return {left, right, top, bottom, text: each.textContent};
}))
"""

SLANTED = re.compile(r"^(base|pydocs_\dk$|\d00k)")  # the box of a slanted label says nothing about overlaps


def overlaps(texts: list[dict]) -> list[tuple[str, str]]:
    """Return pairs of straight labels that overlap by more than two pixels in both directions."""
    straight = [text for text in texts if not SLANTED.search(text["text"])]
    found = []
    for number, one in enumerate(straight):
        for two in straight[:number]:
            across = min(one["right"], two["right"]) - max(one["left"], two["left"])
            down = min(one["bottom"], two["bottom"]) - max(one["top"], two["top"])
            if across > 2 and down > 2:
                found.append((one["text"], two["text"]))
    return found


@pytest.mark.parametrize("tasks", [1, 4, 9])
def test_a_report_in_light_and_dark_wide_and_narrow(tmp_path: Path, tasks: int):
    """It loads nothing else, draws every figure, labels do not overlap, every text has contrast, and nothing is wider
    than the window."""
    names = [f"pydocs_instruction_following_{number}" for number in range(tasks)]
    runs = write_table(tmp_path / "table", effect=0.004, tasks=names)
    (runs[0] / "run.json").write_text("{")  # a missing run, which adds a row and a caution
    url = write(build(tmp_path / "table", 200, 0.95)).as_uri()
    with opened(url) as seen:
        page = seen.page
        assert seen.errors == []
        assert seen.requests == [url]
        boxes = [picture.bounding_box() for picture in page.locator("figure svg").all()]
        assert len(boxes) == PICTURES - (tasks == 1)
        assert all(box["width"] > 600 and box["height"] > 80 for box in boxes), boxes
        assert [overlaps(texts) for texts in page.evaluate(BOXES)] == [[]] * len(boxes)
        page.evaluate(LUMINANCE)
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            paper = page.evaluate("luminance(getComputedStyle(document.body).backgroundColor)")
            assert (paper > 0.8) == (scheme == "light")
            texts = page.evaluate(TEXTS)
            assert len(texts) > 200
            assert [text for text in texts if text[0] < 4.5] == []
        for width in (360, 1100):
            page.set_viewport_size({"width": width, "height": 1000})
            assert page.evaluate("document.documentElement.scrollWidth") <= width
