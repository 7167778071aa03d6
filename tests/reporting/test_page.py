import json
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from functools import partial
from html.parser import HTMLParser

import pytest

from tests.reporting.sweeps import edit
from tometune.common.errors import UserError
from tometune.reporting import mix_figures
from tometune.reporting.cells import group
from tometune.reporting.figures import loss, throughput
from tometune.reporting.page import page, pictures
from tometune.reporting.sweep import read_sweep

FIGURES = ["means", "tasks", "published", "loss", "sources", "throughput"]


def svgs(html):
    return [ElementTree.fromstring(re.sub("xlink:", "", svg)) for svg in re.findall(r"<svg.*?</svg>", html, re.DOTALL)]


class Nesting(HTMLParser):
    """Checks that tags are closed in order."""

    void = ("meta", "br", "link", "hr")

    def __init__(self):
        super().__init__()
        self.open, self.ids = [], []

    def handle_starttag(self, tag, attributes):
        self.ids += [value for name, value in attributes if name == "id"]
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.ids += [value for name, value in attributes if name == "id"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, self.getpos()


def test_one_file_that_needs_nothing_else(html, table_report):
    assert not re.search(r"https?:|//[a-z]|<script|<link|@import|url\((?!#)|src=", html)
    assert len(html) < 500_000
    assert (table_report.sweep.folder / "report.html").read_text() == html


def test_it_is_well_formed_and_ids_are_unique(html):
    parser = Nesting()
    parser.feed(html)
    assert parser.open == []
    assert len(parser.ids) == len(set(parser.ids))


def test_every_picture_has_a_description_and_follows_the_colours(html):
    drawn = svgs(html)
    assert len(drawn) == len(FIGURES)
    for svg in drawn:
        assert svg.get("role") == "img"
        assert len(svg.get("aria-label")) > 30
    assert "pydocs_3k: ROUGE\N{NON-BREAKING HYPHEN}1 0." in drawn[0].get("aria-label")
    inside = "".join(re.findall(r"<svg.*?</svg>", html, re.DOTALL))
    assert set(re.findall(r"#[0-9a-f]{6}\b", inside)) == set(), "only CSS variables"
    assert "prefers-color-scheme: dark" in html
    assert "@media print" in html
    defined = set(re.findall(r"(--[a-z0-9-]+):", html))
    assert set(re.findall(r"var\((--[a-z0-9-]+)\)", html)) <= defined | {"--accent"}


def test_words_come_first_and_the_published_figures_are_called_so(html):
    assert html.index("Is pydocs_3k better") < html.index("<table") < html.index("<svg")
    assert "<b>published</b>" in html
    assert "0.407" in html


def test_limit_and_missing_cells(sweep, report):
    runs = sorted(sweep.iterdir())
    record = json.loads((runs[1] / "run.json").read_text())
    record["eval"]["tuned"]["limited"] = True
    edit(runs[1], eval=record["eval"])
    edit(runs[0], status="failed", error="<b>no memory</b>")
    html = page(report(sweep))
    assert html.count("LIMIT") >= 4
    assert "failed: &lt;b&gt;no memory&lt;/b&gt;" in html


def test_one_cell(one_cell):
    assert "Nothing to compare" in page(one_cell)


def test_two_models_with_one_seed(one_seed):
    html = page(one_seed)
    assert "A single seed" in html
    assert "var(--accent-2)" in html


def test_loss_curves_of_too_many_cells_are_left_out(table_report, monkeypatch):
    monkeypatch.setattr("tometune.reporting.page.CROWDED", 2)
    drawn = [name for name, picture in pictures(table_report).items() if picture is not None]
    assert drawn == [name for name in FIGURES if name != "loss"]


def test_runs_without_curves_or_mix(sweep):
    for run in sweep.iterdir():
        (run / "metrics.jsonl").unlink()
        (run / "mix.json").unlink()
        edit(run, train=None)
    cells = group(read_sweep(sweep)).cells
    assert [
        draw(cells)
        for draw in (partial(loss, models=["tiny"]), mix_figures.sources, partial(throughput, models=["tiny"]))
    ] == [None] * 3


def test_many_sources_are_cut(sweep):
    for run in sweep.iterdir():
        (run / "mix.json").write_text(json.dumps({"sources": {f"s{n}": 100 for n in range(20)}}))
    assert "13 others" in mix_figures.sources(group(read_sweep(sweep)).cells)


@pytest.mark.parametrize(
    ("name", "draw"), [("metrics.jsonl", partial(loss, models=["tiny"])), ("mix.json", mix_figures.sources)]
)
def test_broken_files_are_named(sweep, name, draw):
    path = sorted(sweep.iterdir())[0] / name
    path.write_text('{"step": 10, "loss": 2.0}\n{"st')
    with pytest.raises(UserError, match=re.escape(name)):
        draw(group(read_sweep(sweep)).cells)


def test_names_with_markup_are_escaped(one_cell):
    table = {**one_cell.table, "sweep": "<i>&"}
    assert "<i>" not in page(replace(one_cell, table=table))
