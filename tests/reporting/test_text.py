import csv
import io
import json

from rich.console import Console

from tests.reporting.sweeps import edit
from tometune.reporting.text import as_csv, as_markdown, deviation_label, markdown_rows, print_report


def shown(table, width=80):
    out = io.StringIO()
    print_report(table, Console(file=out, width=width))
    return out.getvalue()


def test_terminal_has_the_published_columns_and_fits(table):
    text = shown(table)
    assert max(map(len, text.splitlines())) <= 80
    header = next(line for line in text.splitlines() if "ROUGE-1" in line)
    assert " ".join(header.split()) == "model data seeds ROUGE-1 ROUGE-2 ROUGE-L sd 1 sd 2 sd L"
    assert "base model" in text
    assert "Is pydocs_3k better than pydocs_1k? Yes." in text
    assert "LIMIT" not in text


def test_one_seed_is_a_dash_never_a_zero(one_seed):
    line = next(line for line in shown(one_seed.table).splitlines() if "pydocs_1k" in line)
    assert line.split()[-3:] == ["–"] * 3
    assert "0.000" not in markdown_rows(one_seed.table)


def test_a_small_deviation_is_not_rounded_to_none():
    assert [deviation_label(value) for value in (None, 0.0, 0.0002, 0.0012)] == ["–", "0.000", "<0.001", "0.001"]


def test_markdown(table):
    text = as_markdown(table)
    lines = text.splitlines()
    assert lines[2] == "| model | data | seeds | ROUGE-1 | ROUGE-2 | ROUGE-L | sd 1 | sd 2 | sd L |"
    assert all(line.count("|") == 10 for line in lines[2:8])
    assert "**Is pydocs_3k better than pydocs_1k?** Yes." in text
    assert "published table" in text


def test_missing_cells_are_shown(sweep, report):
    edit(sorted(sweep.iterdir())[0], status="failed", error='no [bold] "memory", quoted')
    table = report(sweep).table
    assert "2/3" in shown(table)
    assert 'failed: no [bold] "memory", quoted' in shown(table, width=200), "not read as markup"
    assert "Missing: tiny-pydocs_1k-s0" in as_markdown(table)
    rows = list(csv.DictReader(io.StringIO(as_csv(table))))
    assert [row["data"] for row in rows] == ["base model", "pydocs_1k", "pydocs_2k", "pydocs_3k", "pydocs_1k"]
    assert float(rows[1]["rougeL_low"]) < float(rows[1]["rougeL"]) < float(rows[1]["rougeL_high"])
    assert (rows[0]["rouge1_sd"], rows[-1]["rouge1"]) == ("", "")
    assert rows[-1]["note"].endswith('failed: no [bold] "memory", quoted')


def test_limit_is_marked_everywhere(sweep, report):
    run = sorted(sweep.iterdir())[0]
    record = json.loads((run / "run.json").read_text())
    record["eval"]["tuned"]["limited"] = True
    edit(run, eval=record["eval"])
    table = report(sweep).table
    assert table["limited"]
    assert "LIMIT" in shown(table)
    assert "LIMIT" in as_markdown(table)
    assert all(line.endswith("LIMIT") for line in as_csv(table).splitlines()[1:])


def test_a_hyperparameter_is_part_of_the_data_column(ranks):
    assert "pydocs_1k lora.r=4" in as_markdown(ranks.table)
