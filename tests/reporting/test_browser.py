"""report.html in a real browser."""

import re
from pathlib import Path

import pytest

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


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A report with every section in it."""
    folder = tmp_path_factory.mktemp("multirun") / "table"
    runs = write_table(folder, effect=0.004)
    (runs[0] / "run.json").write_text("{")
    return write(build(folder, 300, 0.95)).as_uri()


def test_it_says_nothing_and_asks_for_nothing(url):
    with opened(url) as seen:
        seen.page.wait_for_timeout(200)
    assert seen.errors == []
    assert seen.requests == [url]


def test_every_picture_has_a_size(url):
    with opened(url) as seen:
        boxes = [picture.bounding_box() for picture in seen.page.locator("figure svg").all()]
    assert len(boxes) == PICTURES
    assert all(box["width"] > 600 and box["height"] > 80 for box in boxes), boxes


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read(url, scheme):
    with opened(url, scheme) as seen:
        seen.page.evaluate(LUMINANCE)
        paper = seen.page.evaluate("luminance(getComputedStyle(document.body).backgroundColor)")
        texts = seen.page.evaluate(TEXTS)
    assert (paper > 0.8) == (scheme == "light")
    assert len(texts) > 200
    assert [text for text in texts if text[0] < 4.5] == []


@pytest.mark.parametrize("width", [360, 1100])
def test_nothing_is_wider_than_the_window(url, width):
    with opened(url, width=width) as seen:
        assert seen.page.evaluate("document.documentElement.scrollWidth") <= width


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


@pytest.mark.parametrize("tasks", [1, 2, 4, 9])
def test_labels_do_not_lie_on_each_other(tmp_path: Path, tasks):
    folder = tmp_path / "table"
    names = [f"pydocs_instruction_following_{number}" for number in range(tasks)]
    write_table(folder, effect=0.004, tasks=names)
    with opened(write(build(folder, 200, 0.95)).as_uri()) as seen:
        pictures = seen.page.evaluate(BOXES)
    assert len(pictures) == PICTURES - (tasks == 1)
    straight = [
        [text for text in texts if not re.search(r"^(before|pydocs_\dk$|\d00k)", text["text"])] for texts in pictures
    ]
    assert [overlaps(texts) for texts in straight] == [[]] * len(pictures)
