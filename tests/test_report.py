"""The verb, in a process of its own."""

import json
import resource

import pytest

from tests.reporting.sweeps import write_table

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


def test_what_cannot_be_put_into_one_table_is_one_line(run_verb, sweep):
    path = sorted(sweep.iterdir())[2] / "eval" / "tuned" / "summarisation.jsonl"
    path.write_text(path.read_text().replace('"rouge1"', '"rouge9"', 1))
    done = run_verb("report", "sweep.name=table")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(f"{path.relative_to(sweep.parents[1])}:1: has no 'rouge1', which the report needs")
    assert not (sweep / "table.json").exists()


def test_damaged_runs_are_missing_and_do_not_stop_the_report(run_verb, sweep):
    first, second, *_ = sorted(path for path in sweep.iterdir() if path.is_dir())
    answers = first / "eval" / "tuned" / "summarisation.jsonl"
    answers.write_text(answers.read_text()[:-40])
    (second / "config.yaml").unlink()
    done = run_verb("report", "sweep.name=table")
    assert done.returncode == 0, done.stderr
    reasons = [each["reason"] for each in json.loads((sweep / "table.json").read_text())["missing"]]
    assert reasons[0].startswith("eval/tuned/summarisation.jsonl is broken or truncated (line 30: Unterminated string")
    assert reasons[1].startswith("config.yaml is missing; repeat the command that made this run")


def test_a_report_needs_no_torch(run_python, sweep):
    code = (
        "import sys; from pathlib import Path; from tometune.reporting.report_files import write;"
        "from tometune.reporting.analysis import build;"
        "write(build(Path('multirun/table'), 200, 0.95));"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    done = run_python("-c", code)
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.nightly
def test_speed(run_verb, tmp_path):
    """Nine runs, four tasks, 1,000 examples, 10,000 resamples: at most 20 seconds of computing."""
    write_table(tmp_path / "multirun" / "large", examples=1_000)
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = run_verb("report", "sweep.name=large", fresh=True)
    assert done.returncode == 0, done.stderr
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 20
