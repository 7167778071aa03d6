"""report.html in a real browser."""

import re
from pathlib import Path

from tests.browser import needs_browser, opened
from tests.reporting.sweeps import write_table
from tometune.reporting.report import build, write

pytestmark = needs_browser

PICTURES = 6

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
"""Contrast of two colours as WCAG 2.2 defines it (https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio)."""

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


def complete_report(folder: Path) -> str:
    """Write a report with every section in it; returns its address."""
    runs = write_table(folder, effect=0.004)
    (runs[0] / "run.json").write_text("{")
    return write(build(folder, 300, 0.95)).as_uri()


def test_a_report_in_light_and_dark_wide_and_narrow(tmp_path: Path):
    """It loads nothing else, draws every figure, every text has contrast, and nothing is wider than the window."""
    url = complete_report(tmp_path / "table")
    with opened(url) as seen:
        page = seen.page
        page.wait_for_timeout(200)
        assert seen.errors == []
        assert seen.requests == [url]
        boxes = [picture.bounding_box() for picture in page.locator("figure svg").all()]
        assert len(boxes) == PICTURES
        assert all(box["width"] > 600 and box["height"] > 80 for box in boxes), boxes
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


def overlaps(texts: list[dict]) -> list[tuple[str, str]]:
    """Return pairs of texts of a picture that lie on each other by more than two pixels either way."""
    found = []
    for number, one in enumerate(texts):
        for two in texts[:number]:
            across = min(one["right"], two["right"]) - max(one["left"], two["left"])
            down = min(one["bottom"], two["bottom"]) - max(one["top"], two["top"])
            if across > 2 and down > 2:
                found.append((one["text"], two["text"]))
    return found


BOXES = """
() => [...document.querySelectorAll('figure svg')].map(svg => [...svg.querySelectorAll('text')].map(each => {
  const {left, right, top, bottom} = each.getBoundingClientRect();
  return {left, right, top, bottom, text: each.textContent};
}))
"""


def test_labels_do_not_overlap(tmp_path: Path):
    urls = {}
    for tasks in (1, 4, 9):
        names = [f"pydocs_instruction_following_{number}" for number in range(tasks)]
        write_table(tmp_path / str(tasks), effect=0.004, tasks=names)
        urls[tasks] = write(build(tmp_path / str(tasks), 200, 0.95)).as_uri()
    with opened("about:blank") as seen:
        for tasks, url in urls.items():
            seen.page.goto(url)
            pictures = seen.page.evaluate(BOXES)
            assert len(pictures) == PICTURES - (tasks == 1)
            slanted = re.compile(r"^(base|pydocs_\dk$|\d00k)")
            straight = [[text for text in texts if not slanted.search(text["text"])] for texts in pictures]
            assert [overlaps(texts) for texts in straight] == [[]] * len(pictures)
