"""The verb, in a process of its own."""

import csv
import io
import json
import re
import resource

import pytest

from tests.reporting.sweeps import edit, write_table

FILES = ("table.json", "table.csv", "table.md", "report.html")


@pytest.fixture
def sweep(tmp_path):
    folder = tmp_path / "multirun" / "table"
    write_table(folder, effect=0.08, deviation=0.002)
    return folder


def test_writes_four_files_and_says_where(run_verb, sweep):
    done = run_verb("report", "sweep.name=table", "eval.resamples=1000")
    assert done.returncode == 0, done.stderr
    assert "Is pydocs_3k better than pydocs_1k? Yes." in done.stdout
    assert "multirun/table/report.html" in done.stdout
    assert all((sweep / name).stat().st_size for name in FILES)
    assert json.loads((sweep / "table.json").read_text())["interval"]["resamples"] == 1000
    first = (sweep / "table.json").read_bytes()
    assert run_verb("report", "sweep.name=table", "eval.resamples=1000").returncode == 0
    assert (sweep / "table.json").read_bytes() == first


def test_a_sweep_by_its_file_is_read_once(run_verb, tmp_path):
    write_table(tmp_path / "multirun" / "seeds", seeds=1)
    done = run_verb("report", "+sweep=seeds", "eval.resamples=200")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("multirun/seeds/report.html") == 1
    assert done.stderr == ""
    (tmp_path / "multirun" / "seeds").rename(tmp_path / "multirun" / "sedes")
    done = run_verb("report", "+sweep=seeds")
    assert (done.returncode, done.stderr) == (2, "multirun/seeds: no such sweep folder; did you mean sedes?\n")
    assert sorted(path.name for path in (tmp_path / "multirun").iterdir()) == ["sedes"]
    done = run_verb("report", "+sweep=sedes")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "seeds" in done.stderr


def test_several_sweeps_in_one_command(run_verb, tmp_path):
    for name in ("one", "two"):
        write_table(tmp_path / "multirun" / name, seeds=1)
    done = run_verb("report", "-m", "sweep.name=one,two", "eval.resamples=200")
    assert done.returncode == 0, done.stderr
    assert all((tmp_path / "multirun" / name / "report.html").exists() for name in ("one", "two"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "sweep.name is required; sweeps in multirun: table"),
        (["sweep.name=tabel"], "multirun/tabel: no such sweep folder; did you mean table?"),
    ],
)
def test_wrong_names_are_one_line(run_verb, sweep, arguments, message):
    done = run_verb("report", *arguments)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"{message}\n")


def told(path):
    """Return a path as messages name it."""
    return path.relative_to(path.parents[5])


def cut_line(path):
    path.write_text(path.read_text()[:-40])
    return f"{told(path)}:30: not a line of scores (Unterminated string", "delete it and run the same command again"


def foreign_line(path):
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:6], "<html>", *lines[7:]]))
    return f"{told(path)}:7: not a line of scores (Expecting value", "delete it and run the same command again"


def other_examples(path):
    path.write_text(path.read_text().replace("summarisation-7", "summarisation-x"))
    first = sorted(path.parents[3].glob("*/"))[0] / "eval" / "tuned" / path.name
    here, there = f"only in {told(path)}: summarisation-x;", f"only in {told(first)}: summarisation-7;"
    return "summarisation: runs with different examples cannot be paired; ", here, there, "score one of them again"


def other_references(path):
    path.write_text(path.read_text().replace("reference 7", "another"))
    return f"{told(path)}: other references than in ", " for summarisation-7; ", "score one of them again"


def other_schema(path):
    run = path.parents[2]
    edit(run, schema=7)
    known = "multirun/table: run.json of another version (this one reads schema 1)"
    return f"{known}: schema 7: {run.name}; ", "move these runs away and repeat them"


@pytest.mark.parametrize("spoil", [cut_line, foreign_line, other_examples, other_references, other_schema])
def test_what_cannot_be_put_into_one_table_is_one_line(run_verb, sweep, spoil):
    start, *more = spoil(sorted(sweep.iterdir())[2] / "eval" / "tuned" / "summarisation.jsonl")
    done = run_verb("report", "sweep.name=table")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(start)
    assert all(text in done.stderr for text in more), done.stderr
    assert not (sweep / "table.json").exists()


def test_one_seed_has_no_deviation_and_every_file_says_so(run_verb, tmp_path):
    write_table(tmp_path / "multirun" / "table", seeds=1)
    done = run_verb("report", "sweep.name=table", "eval.resamples=300")
    assert done.returncode == 0, done.stderr
    read = {name: (tmp_path / "multirun" / "table" / name).read_text() for name in FILES}
    said = "A single seed, so the deviation is unknown (–): pydocs_1k, pydocs_2k, pydocs_3k."
    assert said in " ".join(done.stdout.split())
    assert said in read["table.md"]
    assert said in read["report.html"]
    shown = re.findall(r"^ *tiny +pydocs_.*$", done.stdout, re.MULTILINE)
    assert [line.split()[-3:] for line in shown] == [["–"] * 3] * 3
    lines = re.findall(r"^\| tiny \| pydocs_.*$", read["table.md"], re.MULTILINE)
    assert [line.split(" | ")[-3:] for line in lines] == [["–", "–", "– |"]] * 3
    rows = list(csv.DictReader(io.StringIO(read["table.csv"])))[1:]
    assert [row[f"{metric}_sd"] for row in rows for metric in ("rouge1", "rouge2", "rougeL")] == [""] * 9
    cells = re.findall(r'<td class="text">pydocs_.*?</tr>', read["report.html"])
    assert [re.findall(r"<td>([^<]*)</td>", row)[-3:] for row in cells[:3]] == [["–"] * 3] * 3


def test_a_half_written_record_is_a_missing_cell(run_verb, sweep):
    path = sorted(sweep.iterdir())[0] / "run.json"
    path.write_text(path.read_text()[:100])
    done = run_verb("report", "sweep.name=table", "eval.resamples=300")
    assert done.returncode == 0, done.stderr
    assert f"missing {path.parent.name}: run.json is broken" in done.stdout
    edit(sorted(sweep.glob("*/"))[1], schema=7)
    assert run_verb("report", "sweep.name=table").returncode == 2


def test_no_torch(run_python, sweep):
    code = (
        "import sys; from pathlib import Path; from tometune.reporting.report import build, write;"
        "write(build(Path('multirun/table'), 200, 0.95));"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    done = run_python("-c", code)
    assert done.stdout == "[]\n", done.stderr


def test_speed(run_verb, tmp_path):
    """Nine runs, four tasks, 1,000 examples, 10,000 resamples: at most 20 seconds of computing."""
    write_table(tmp_path / "multirun" / "large", examples=1_000)
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = run_verb("report", "sweep.name=large")
    assert done.returncode == 0, done.stderr
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 20
