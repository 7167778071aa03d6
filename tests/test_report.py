"""The verb, in a process of its own."""

import json
import resource

import pytest

from tests.reporting.sweeps import write_run, write_table


def test_writes_four_files_and_says_where_and_skips_broken_runs(run_verb, tmp_path):
    sweep = tmp_path / "multirun" / "table"
    write_table(sweep, effect=0.08, deviation=0.002)
    done = run_verb("report", "sweep.name=table", "eval.resamples=1000")
    assert done.returncode == 0, done.stderr
    assert "Is pydocs_3k better than pydocs_1k? Yes." in done.stdout
    assert "multirun/table/report.html" in done.stdout
    first = (sweep / "table.json").read_bytes()
    assert json.loads(first)["interval"]["resamples"] == 1000
    assert all((sweep / name).stat().st_size for name in ("table.csv", "table.md", "report.html"))
    verdict = run_verb("report", "sweep.name=table", "eval.resamples=1000", "require=pydocs_3k>pydocs_1k:rougeL>=-0.01")
    assert (verdict.returncode, verdict.stdout.count("\n")) == (0, 1)
    assert verdict.stdout.startswith("shown: pydocs_3k − pydocs_1k: ROUGE-L +0.1")
    assert (sweep / "table.json").read_bytes() == first

    broken, shortened, without, odd, *_ = sorted(sweep.glob("*/run.json"))
    broken.write_text("[]")
    answers = shortened.parent / "eval" / "tuned" / "summarisation.jsonl"
    answers.write_text(answers.read_text()[:-40])
    (without.parent / "config.yaml").unlink()
    required = "require=[pydocs_3k>pydocs_2k:rougeL>=0,pydocs_2k>pydocs_3k:rouge1>=0]"
    done = run_verb("report", "sweep.name=table", "eval.resamples=200", required)
    assert done.returncode == 3, done.stderr
    assert done.stdout.startswith("refuted: pydocs_2k − pydocs_3k: ROUGE-1 −")
    warning, unlisted, page = done.stderr.splitlines()
    assert str(broken.relative_to(tmp_path)) in warning
    assert "no sweep.json" in unlisted
    assert page.startswith("multirun/table/report.html (also ")
    missing = json.loads((sweep / "table.json").read_text())["missing"]
    assert [entry["run_id"] for entry in missing] == [path.parent.name for path in (broken, shortened, without)]
    _, of_scores, of_config = (entry["reason"] for entry in missing)
    assert of_scores.startswith("eval/tuned/summarisation.jsonl is broken or truncated (line 30: Unterminated string")
    assert of_config.startswith("config.yaml is missing; repeat the command that made this run")

    for path in sweep.glob("[tr]*.*"):
        path.unlink()
    answers = odd.parent / "eval" / "tuned" / "summarisation.jsonl"
    answers.write_text(answers.read_text().replace('"rouge1"', '"rouge9"', 1))
    no_rouge = f"{answers.relative_to(tmp_path)}:1: has no 'rouge1', which the report needs"
    incomplete = "require=pydocs_3k>pydocs_1k: write A>B:METRIC>=VALUE or"
    for option, message in (("eval.resamples=200", no_rouge), ("require=pydocs_3k>pydocs_1k", incomplete)):
        done = run_verb("report", "sweep.name=table", option)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.splitlines()[-1].startswith(message)
    assert not [*sweep.glob("[tr]*.*")]


@pytest.mark.nightly
def test_sweeps_by_their_file_or_their_names(run_verb, tmp_path):
    multirun = tmp_path / "multirun"
    for name in ("seeds", "two"):
        write_table(multirun / name, seeds=1)
    done = run_verb("report", "+sweep=seeds", "eval.resamples=200")
    assert (done.returncode, done.stderr.count("\n")) == (0, 1)
    assert done.stderr.startswith("multirun/seeds: no sweep.json, so runs that never started are not known")
    assert done.stdout.count("multirun/seeds/report.html") == 1, "read once"
    for overrides, message in (
        (["paths.multirun=empty"], "no sweep in empty; make one, e.g. tometune train -m +sweep=table"),
        (["sweep.name=seds"], "multirun/seds: no such sweep folder; did you mean seeds?"),
        (["+sweep=seds"], "sweep=seds: no such option; did you mean seeds?"),
    ):
        done = run_verb("report", *overrides)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert done.stderr.startswith(message)
    assert sorted(path.name for path in multirun.iterdir()) == ["seeds", "two"]
    assert run_verb("report", "-m", "sweep.name=seeds,two", "eval.resamples=200").returncode == 0
    assert (multirun / "two" / "report.html").exists()
    begun = multirun / "begun" / "run" / "run.json"
    begun.parent.mkdir(parents=True)
    begun.write_text('{"schema": 1, "status": "running"}')
    newest = run_verb("report", "eval.resamples=200")
    assert newest.stderr.startswith("the sweep with the newest finished run: multirun/two (another: sweep.name=…)\n")


def test_named_runs_are_compared_like_cells_whatever_differs(run_verb, tmp_path):
    write_run(tmp_path / "outputs", "mine_4k", 4000, level=0.3)
    other = write_run(tmp_path / "multirun" / "x", "table", 100, level=0.5, settings={"trainer.max_length": 9})
    (first,) = (tmp_path / "outputs").iterdir()
    runs = f"runs=[{first.name},{other.relative_to(tmp_path)}]"
    done = run_verb("report", runs, "eval.resamples=200", "require=mine_4k>table:rougeL>=0")
    assert done.returncode == 4, done.stderr
    assert done.stdout.startswith("undecided: mine_4k − table: ROUGE-L −")
    (page,) = tmp_path.glob("outputs/reports/2-runs-*/report.html")
    assert str(page.relative_to(tmp_path)) in done.stderr
    assert "**Is mine_4k better than table?** A single seed cannot tell." in page.with_name("table.md").read_text()
    assert "table" in run_verb("report", f"run={other.name}", "eval.resamples=200").stdout
    same = run_verb("report", f"runs=[{first.name},outputs/{first.name}]")
    assert (same.returncode, same.stdout) == (2, "")
    assert same.stderr.startswith(f"runs: {first.name} are not different runs; name each once")


@pytest.mark.nightly
def test_speed(run_verb, tmp_path):
    """Nine runs, four tasks, 1,000 examples, 10,000 resamples: at most 20 seconds of computing."""
    write_table(tmp_path / "multirun" / "large", examples=1_000)
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = run_verb("report", "sweep.name=large", fresh=True)
    assert done.returncode == 0, done.stderr
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 20
