"""The table on the terminal, as Markdown and CSV, and the page."""

import csv
import io
import json
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import numpy as np
from rich.console import Console
from scipy import stats

from tests.reporting.sweeps import edit, editing, write_run
from tometune.evaluation.statistics import seeds_needed
from tometune.reporting import figures, mix_figures, report_files
from tometune.reporting.analysis import build
from tometune.reporting.conclusions import between, p_value, signed
from tometune.reporting.grouping import group
from tometune.reporting.report_files import (
    PUBLISHED,
    PUBLISHED_ANSWER,
    as_csv,
    as_html,
    as_markdown,
    deviation_label,
    print_report,
)
from tometune.reporting.sweep import read_sweep


def shown(table, width=80):
    out = io.StringIO()
    print_report(table, Console(file=out, width=width))
    return out.getvalue()


def drawn(html):
    """The headings of the figures that the page shows."""
    return re.findall(r"<h2>([^<]*)</h2>(?:(?!<h2>).)*?(?:<svg|class=.bars)", html, re.DOTALL)


def test_the_terminal_shows_the_published_columns_in_80_characters(table, one_seed, ranks):
    text = shown(table)
    assert max(map(len, text.splitlines())) <= 80
    header = next(line for line in text.splitlines() if "ROUGE-1" in line)
    assert " ".join(header.split()) == "model data seeds ROUGE-1 ROUGE-2 ROUGE-L sd 1 sd 2 sd L"
    assert "base model" in text
    assert "Is pydocs_3k better than pydocs_1k? Yes." in text
    assert "LIMIT" not in text
    line = next(line for line in shown(one_seed.table).splitlines() if "pydocs_1k" in line)
    assert line.split()[-3:] == ["–"] * 3
    assert [deviation_label(value) for value in (0.0, 0.0002, 0.0012)] == ["0.000", "<0.001", "0.001"]
    assert "| pydocs_1k lora.r=4 |" in as_markdown(ranks.table)


def test_limits_and_missing_runs_are_marked_in_every_format(sweep, page):
    first, second, *_ = sorted(sweep.iterdir())
    reason = 'failed: no [bold] <b>"memory", quoted'
    edit(first, status="failed", error=reason.removeprefix("failed: "))
    with editing(second) as record:
        record["eval"]["tuned"]["limited"] = True
    made = build(sweep, 100, 0.95)
    assert "2/3" in shown(made.table)
    assert reason in shown(made.table, width=200), "not read as markup"
    assert "Missing: tiny-pydocs_1k-s0" in as_markdown(made.table)
    rows = list(csv.DictReader(io.StringIO(as_csv(made.table))))
    assert [row["data"] for row in rows] == ["base model", "pydocs_1k", "pydocs_2k", "pydocs_3k", "pydocs_1k"]
    assert (rows[0]["rouge1_sd"], rows[-1]["rouge1"]) == ("", "")
    assert rows[-1]["note"].endswith(reason)
    assert [row["note"] for row in rows[:-1]] == ["LIMIT"] * 4
    html = page(made)
    assert all("LIMIT" in text for text in (shown(made.table), as_markdown(made.table), html))
    assert "failed: no [bold] &lt;b&gt;" in html


def test_the_page_needs_no_other_file_and_describes_its_figures(table_report):
    html = as_html(table_report)
    assert (table_report.sweep.folder / "report.html").read_text() == html, "the same each time"
    main = html[html.index("<main>") : html.index("</main>")] + "</main>"
    parsed = ElementTree.fromstring(main.replace("&nbsp;", " ").replace("xlink:", ""))  # every tag is closed in order
    ids = [element.get("id") for element in parsed.iter() if element.get("id")]
    assert len(ids) == len(set(ids)) > 100
    assert not re.search(r"https?:|//[a-z]|<script|<link|@import|url\((?!#)|src=", html)
    assert len(html) < 500_000
    assert html.index("Is pydocs_3k better") < html.index("<table") < html.index("<svg"), "words come first"
    assert drawn(html) == ["Scores", "Scores by task", "Data sources", "Training loss"]
    assert "<title>table: tiny on pydocs_1k, pydocs_2k, pydocs_3k · 2026-11-24 · tometune</title>" in html
    run = min(path.name for path in table_report.sweep.folder.glob("tiny-*"))
    assert f'<a href="{run}/">{run}</a>' in html
    assert "0.407" in html
    labels = [figure.get("aria-label") for figure in parsed.iter("div") if figure.get("role") == "img"]
    assert len(labels) == 4
    assert "pydocs_3k: ROUGE\N{NON-BREAKING HYPHEN}1 0." in labels[0]
    assert min(map(len, labels)) > 30
    svgs = "".join(re.findall(r"<svg.*?</svg>", html, re.DOTALL))
    assert re.findall(r"#[0-9a-f]{6}\b", svgs) == [], "only CSS variables"
    defined = set(re.findall(r"(--[a-z0-9-]+):", html))
    assert set(re.findall(r"var\((--[a-z0-9-]+)\)", html)) <= defined | {"--accent"}


def test_the_page_of_one_cell_and_of_two_models(one_cell, one_seed, page):
    html = page(replace(one_cell, table={**one_cell.table, "sweep": "<i>&"}))
    assert "Nothing to compare" in html
    assert "<i>" not in html
    html = page(one_seed, "means")
    assert "A single seed" in html
    assert "var(--accent-2)" in html


def test_figures_of_many_models_and_of_sizes_under_one_name_lack_nothing(tmp_path):
    for rows in (1000, 2000, 3000, 4000):
        for number in range(7):
            name = f"rows-{rows}"
            write_run(tmp_path / "models", name, rows, model=f"m{number}", settings={"data.rows": rows}, examples=2)
        write_run(tmp_path / "sizes", "mine", rows, settings={"data.rows": rows}, examples=2)
    table = build(tmp_path / "models", 20, 0.95).table
    for figure in (figures.curve, figures.means):
        assert re.findall("</i>([^<]*)</li>", figure(table)) == [f"m{number}" for number in range(7)]
    bars = mix_figures.sources(build(tmp_path / "sizes", 20, 0.95).cells)
    assert re.findall("<b>([^<]*)</b>", bars) == ["1,000", "2,000", "3,000", "4,000"]


def test_figures_without_data_or_with_broken_files_and_loss_curves_of_too_many_cells(
    table_report, sweep, page, monkeypatch, caplog
):
    names = ("loss", "sources")
    monkeypatch.setattr(report_files, "CROWDED", 2)
    assert drawn(page(table_report, *names)) == ["Data sources"]
    monkeypatch.setattr(report_files, "CROWDED", 12)
    for run in sweep.iterdir():
        (run / "metrics.jsonl").unlink()
        (run / "mix.json").unlink()
        edit(run, train=None)
    made = build(sweep, 100, 0.95)
    assert (drawn(page(made, *names)), caplog.text.count("left out")) == ([], 0)
    paths = [sorted(sweep.iterdir())[0] / name for name in ("metrics.jsonl", "mix.json")]
    for path in paths:
        path.write_text('{"step": 10, "loss": 2.0}\n{"st')
    assert drawn(page(made, *names)) == []
    assert all(str(path) in caplog.text for path in paths)


def test_many_sources_share_one_colour_and_labels_of_cells_are_short_but_different(sweep, ranks, table):
    for run in sweep.iterdir():
        (run / "mix.json").write_text(json.dumps({"sources": {f"s{n}": 100 for n in range(20)}}))
    assert "13 others" in mix_figures.sources(group(read_sweep(sweep))[0])
    assert list(figures.short_labels(ranks.table["rows"][1:]).values()) == ["r=4", "r=8", "r=16"]
    row = table["rows"][1]
    clash = [{**row, "settings": {key: 4}} for key in ("lora.r", "other.r")]
    assert list(figures.short_labels(clash)) == list(figures.short_labels(clash).values())


def test_the_answer_of_the_published_table_follows_from_its_numbers():
    needed = []
    for n, metric in enumerate(("ROUGE-1", "ROUGE-2", "ROUGE-L")):
        small, large = (np.array([row.mean[n], row.std[n] ** 2]) for row in (PUBLISHED[0], PUBLISHED[-1]))
        delta, variances = large[0] - small[0], np.array([large[1], small[1]])
        test = stats.t(2 * variances.sum() ** 2 / (variances**2).sum())  # Welch's, of three runs each
        error = np.sqrt(variances.sum() / 3)
        ends = {"ci_low": delta - test.ppf(0.975) * error, "ci_high": delta + test.ppf(0.975) * error}
        text = f"{metric} {signed(delta)} ({between(ends)}, {p_value(2 * test.sf(abs(delta) / error))})"
        assert text in PUBLISHED_ANSWER
        needed.append(seeds_needed(np.sqrt(variances.sum()), 0.01, paired=False))
    assert f"takes {min(needed)} to {max(needed)} runs per arm" in PUBLISHED_ANSWER
