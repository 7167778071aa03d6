"""The plan of a command: sizes of its runs, an estimate of their costs, and the differences that they can detect."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from tests.reporting.sweeps import TASKS, write_run, write_table
from tests.sweep.conftest import QUICK, SWEEP, runs_in
from tests.whole import record_of
from tometune.common.errors import UserError
from tometune.config.command_line import CommandLine
from tometune.config.eval import EvalConfig
from tometune.config.model import Backend, ModelConfig, Quantization
from tometune.config.root import Config, PathsConfig, register
from tometune.config.sweep_cells import jobs_of
from tometune.reporting.analysis import build
from tometune.reporting.report_files import write
from tometune.sweep import plan
from tometune.sweep.plan import REFERENCE, PlannedRun, Speed, known_speed, plan_sweep, print_plan, without_base
from tometune.sweep.power import power_lines
from tometune.training.steps import with_steps

TASK = {"seconds": 4.0, "examples": 2}
RECORD = {
    "schema": 1,
    "status": "completed",
    "attempts": 1,
    "started": "2026-01-01T00:00:00+00:00",
    "finished": "2026-01-01T00:00:30+00:00",
    "model": {"id": "m", "quantization": "none", "backend": "transformers", "device_name": "here"},
    "train": {"tokens": 100, "seconds": 10.0, "peak_memory_bytes": 7},
    "eval": {"base": {"tasks": {"a": TASK}}, "tuned": {"tasks": {"a": TASK}}},
}


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setattr(plan, "device_name", lambda: "here")
    paths = PathsConfig(outputs=str(tmp_path / "outputs"), multirun=str(tmp_path / "multirun"))
    model = ModelConfig(name="tiny", id="m", quantization=Quantization.none, backend=Backend.transformers)
    return Config(model=model, eval=EvalConfig(), paths=paths)


def write_record(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(RECORD | changes))
    return folder


def test_the_speed_of_an_earlier_run(config, tmp_path):
    assert known_speed(config, tmp_path) is None
    run = write_record(tmp_path / "multirun" / "sweep" / "a")
    for step, size in ((2, 30), (4, 40)):
        (run / "checkpoints" / f"checkpoint-{step}").mkdir(parents=True)
        (run / "checkpoints" / f"checkpoint-{step}" / "weights").write_bytes(b"0" * size)
    disk = (run / "run.json").stat().st_size
    assert known_speed(config, tmp_path) == Speed("1 earlier run", 10.0, 0.5, 7, disk, 40, 12.0)


@pytest.mark.parametrize(
    ("phases", "other", "base"),
    [
        # The data is made by the plan; the second attempt found the base scores; the rest of the training is unknown.
        ("data 9, load 3, base 6, data 1, load 2, base 0, train 4, tuned 5", 3 + 2 + 1, 2),
        ("data 9, load 30, base 4, train 40, load 30, tuned 4", 30 + 30 + 30, 0),  # e.g. lora=none loads twice
        ("data 9, load 30, base 0, train 12, tuned 9", 30 + 2 + 5, 0),  # `base` was interrupted after its tasks
    ],
)
def test_the_phases_of_a_run(config, tmp_path, phases, other, base):
    """They count, not when the record begins and ends, which says nothing about an interrupted run."""
    pairs = (each.split() for each in phases.split(", "))
    found = [{"phase": name, "seconds": float(seconds)} for name, seconds in pairs]
    write_record(tmp_path / "outputs" / "a", attempts=2, phases=found, finished="2026-01-09T00:00:00+00:00")
    speed = known_speed(config, tmp_path)
    assert (speed.other_seconds, speed.base_seconds) == (other, base)


def test_answers_of_the_harness_are_no_answers_of_the_tasks(config, tmp_path):
    """A plan does not count them, so their time is among the rest."""
    tuned = {"tasks": {"a": TASK, "harness_x": {"seconds": 10.0, "examples": 500}}}
    write_record(tmp_path / "outputs" / "a", eval={"tuned": tuned})
    speed = known_speed(config, tmp_path)
    assert (speed.answers_per_second, speed.other_seconds) == (0.5, 30 - 10 - 4)


def test_a_short_run_is_short_with_a_budget_of_tokens(config, tmp_path):
    config.trainer.max_tokens = 40_000_000
    trainer = plan._short_run(config, tmp_path).trainer
    assert with_steps(trainer, rows=1000, tokens=2_000_000).max_steps == plan.STEPS


def test_the_base_model_is_scored_once():
    sizes, both = {"qa": 3, "held_out": 1}, {"qa": "model, qa", "held_out": "model, held_out"}
    first = PlannedRun("s0", 10, 1000, 4, 8, False, 100.0, examples=sizes, base=both, base_seconds=30.0)
    second, other = replace(first, run_id="s1"), replace(first, run_id="s2", base={"qa": "other model, qa"})
    assert without_base(first, []) == first
    assert without_base(second, [first]) == replace(second, answers=4, seconds=70.0)
    assert without_base(second, [replace(first, base={"qa": "model, qa"})]) == replace(second, answers=5, seconds=77.5)
    assert without_base(replace(second, seconds=None), [replace(first, done=True)]).answers == 4
    for run in (other, replace(second, done=True), replace(second, base={})):
        assert without_base(run, [first, replace(first, base={})]) == run


def test_the_median_of_the_last_runs_of_the_same_kind(config, tmp_path):
    def train(tokens: int) -> dict[str, Any]:
        return {"tokens": tokens, "seconds": 1.0, "peak_memory_bytes": tokens}

    outputs, kind = tmp_path / "outputs", {"id": "m", "quantization": "none", "backend": "transformers"}
    write_record(outputs / "oldest", train=train(9000), finished="2025-01-01T00:00:00+00:00")
    for number, tokens in enumerate((100, 200, 300, 400)):
        write_record(outputs / f"{number}", train=train(tokens))
    write_record(tmp_path / "cache" / "measured" / "short", train=train(300))
    others = (
        *({"model": kind | {"device_name": "there"}}, {"model": kind}, {"attempts": 2}, {"status": "failed"}),
        {"status": "running", "train": None},
        {"model": RECORD["model"] | {"compute": "fp8"}},
    )
    for number, change in enumerate(others):
        write_record(outputs / f"other{number}", **{"train": train(7)} | change)
    (write_record(outputs / "broken") / "run.json").write_text("{")
    found = known_speed(config, tmp_path / "cache")
    assert (found.source, found.tokens_per_second, found.memory) == ("5 earlier runs", 300, 400)


@pytest.mark.parametrize("kind", REFERENCE)
def test_a_gpu_without_earlier_runs_has_the_speeds_of_the_named_file(config, tmp_path, monkeypatch, kind):
    speed = REFERENCE[kind]
    if kind.backend == "transformers":  # Unsloth is not installed everywhere
        monkeypatch.setattr(plan, "device_name", lambda: kind.device)
        stored = Quantization(kind.quantization)
        config = replace(config, model=replace(config.model, id=kind.model, quantization=stored))
        assert known_speed(config, tmp_path) == speed
    root = Path(__file__).parents[2]
    content = json.loads((root / speed.source.partition(",")[0]).read_text())
    if "contenders" in content:
        measured = content["contenders"][f"tometune_{kind.backend}"]
        assert content["circumstances"]["gpu"] == kind.device
        assert speed.tokens_per_second == round(measured["tokens_per_second"]["median"])
        assert speed.memory == pytest.approx(1e9 * measured["peak_memory_gb"], rel=0.01)
        assert speed.other_seconds == pytest.approx(measured["seconds_to_first_step"], abs=1)
    else:
        assert speed.tokens_per_second == round(content["train"]["tokens_per_second"])
        assert speed.memory == pytest.approx(content["train"]["peak_memory_bytes"], rel=0.01)
        stages = content["eval"].values()
        answers = sum(task["examples"] for stage in stages for task in stage["tasks"].values())
        assert speed.answers_per_second == round(answers / sum(stage["seconds"] for stage in stages))


def test_the_printed_plan(capsys):
    known = PlannedRun("a", 10, 1000, 4, 8, False, 7200.0, 2e9, 3e9, "1 earlier run")
    changes = ({}, {"done": True}, {"seconds": None, "memory": 5e9}, {"seconds": 42.4}, {"seconds": 600.0})
    runs = [replace(known, run_id=f"tiny-x-s{number}-aaaaaaaa", **change) for number, change in enumerate(changes)]
    print_plan(runs, ["seed=x: wrong"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Runs tiny-x-…"
    assert [line.split()[0] for line in lines[4:9]] == [f"s{number}-aaaaaaaa" for number in range(5)]
    assert [line.partition(" 8 ")[2].strip() for line in lines[4:9]] == ["2.0 h", "done", "unknown", "42 s", "10 min"]
    assert lines[-4:] == [
        "5 runs: 1 done, 4 left with 4,000 tokens, 16 steps",
        "  2.2 h one after the other, memory 2.0 GB, disk 9.00 GB (from 1 earlier run)",
        "  1 of unknown speed, about 5.0 GB of memory; plan=measure makes a short run",
        "  not possible: seed=x: wrong",
    ]


def test_each_cell_of_several_sweeps_is_planned_with_its_own_settings(monkeypatch, capsys):
    register()
    planned: list[tuple[str | None, int]] = []
    run = PlannedRun("a", 10, 1000, 4, 8, False, examples={"qa": 8})
    monkeypatch.setattr(plan, "plan_run", lambda config, _: planned.append((config.sweep.name, config.seed)) or run)
    monkeypatch.setattr(plan, "print_plan", lambda runs, problems: print(*problems, sep="\n"))
    overrides = ["model=tiny", "data=pydocs_1k", "sweep.name=a,b", "seed=0,1", "lora.r=0,4"]
    jobs = jobs_of(CommandLine(overrides, multirun=True))
    assert plan_sweep(jobs, print) == 0
    out = capsys.readouterr().out
    assert "power: unknown until a sweep of this model" in out
    assert planned == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    line = "sweep.name=a lora.r=0, sweep.name=b lora.r=0: lora.r=0: not 1 or more"
    assert line in out.splitlines(), "one line for all cells and seeds"
    seeds = [job for job in jobs.known if "sweep.name=a" in job.overrides and not job.problems]
    monkeypatch.setattr(plan, "plan_run", Mock(side_effect=UserError("too few rows")))
    assert plan_sweep(replace(jobs, known=seeds), print) == 2
    assert capsys.readouterr().out.splitlines() == ["too few rows"]


@pytest.mark.whole
def test_a_plan_before_and_after(place):
    sweep = (*SWEEP, "sweep.name=planned")
    done = place.verb("train", *sweep, "plan=true")
    assert done.returncode == 0, done.stderr
    assert re.search(r"s0-\w{8} +64 +[\d,]+ +2 +1 +unknown", done.stdout)
    assert "2 runs: 0 done, 2 left with" in done.stdout
    assert not (place.folder / "multirun").exists()

    done = place.verb("train", *sweep, "plan=measure")
    assert done.stderr.count("measuring 12 training steps and 16 answers per task") == 1
    assert re.search(r"  \d+ s one after .*, memory \d\.\d GB, disk 0\.\d\d GB \(from 1 earlier run\)", done.stdout)
    status, stderr = place.train(*sweep)
    assert status == 0, stderr
    for run in runs_in(place.folder / "multirun" / "planned").values():
        assert record_of(run)["model"]["device_name"]
    done = place.verb("train", "-m", *QUICK, "seed=0,1,3", "sweep.name=planned", "plan=true")
    assert "3 runs: 2 done, 1 left" in done.stdout
    assert len(re.findall(r" done *$", done.stdout, re.MULTILINE)) == 2
    assert "(from 3 earlier runs)" in done.stdout
    assert not (place.folder / "outputs").exists()


@pytest.mark.whole
def test_a_plan_counts_held_out_rows_and_the_base_scores_of_the_same_settings_once(place):
    """The runs share them by the same rule, see the tests of `Scorer`."""

    def counts(*varied: str) -> list[tuple[int, int]]:
        """Return the rows and answers of each run."""
        done = place.verb("train", "-m", *QUICK, "eval.base=true", "sweep.name=base", "plan=true", *varied)
        assert done.returncode == 0, done.stderr
        lines = re.findall(r"-?\w{8} +(\d+) +[\d,]+ +\d+ +([\d,]+) ", done.stdout)
        return [(int(rows), int(answers.replace(",", ""))) for rows, answers in lines]

    varied = ("eval.temperature=0,1", "eval.max_prompt_tokens=512,1024", "seed=0,1")
    assert counts(*varied) == [(64, answers) for answers in (2, 1, 2, 1, 2, 2, 2, 2)], (
        "seeds count if answers are drawn"
    )
    (rows, answers), (all_rows, tuned) = counts("data.held_out.rows=4,0", "eval.limit=null")
    assert (rows, all_rows) == (60, 64), "those of the base are in no mix"
    assert answers == 2 * tuned + 2 * (4 + 4), "of base and pool, before and after training"


def numbers(line):
    """The smallest difference, the seeds and the examples of a line; None is no number."""
    found = re.fullmatch(
        r"  .+: differences from ([\d.]+); .+ takes (\S+)(?: number of)? seeds or (\S+)(?: number of)? examples", line
    )
    assert found, line
    return float(found[1]), *(None if text == "no" else int(text.replace(",", "")) for text in found.groups()[1:])


def test_without_scores_or_with_a_single_seed_the_power_is_unknown(config):
    assert power_lines(config, 1, {"qa": 10}) == ["power: a single seed allows no test; add seeds, e.g. seed=0,1,2"]
    (line,) = power_lines(config, 3, {"qa": 10})
    assert line.startswith("power: unknown until a sweep of this model")


def test_the_power_by_the_deviations_of_earlier_sweeps(config, tmp_path):
    sweep = tmp_path / "multirun" / "table"
    write_table(sweep, deviation=0.01, noise=0.02, examples=100)
    write(build(sweep, 500, 0.95))
    (tmp_path / "multirun" / "broken").mkdir()
    (tmp_path / "multirun" / "broken" / "table.json").write_text("[]")
    head, *lines = power_lines(config, 3, dict.fromkeys(TASKS, 100))
    assert head == "power of 80% at the level 0.05 with 3 seeds and 400 examples, from earlier sweeps:"
    assert [line.partition(":")[0].strip() for line in lines] == ["ROUGE-1", "ROUGE-2", "ROUGE-L"]
    least, seeds, examples = numbers(lines[2])
    assert 0.02 < least < 0.08, "about 3.3 deviations of 0.014"
    assert 5 < seeds < 20
    assert examples is None, "the deviation over seeds alone is too large"
    assert numbers(power_lines(config, 30, dict.fromkeys(TASKS, 100))[3])[0] < 0.01
    config.report.primary, config.report.margin = "rougeL", 0.1
    _, line = power_lines(config, 3, dict.fromkeys(TASKS, 25))
    assert "ROUGE-L" in line
    assert numbers(line)[1] <= 3, "the margin is larger than what can be detected"
    assert numbers(line)[2] == 100
    config.model.name = "other"
    assert power_lines(config, 3, dict.fromkeys(TASKS, 100))[0].startswith("power: unknown")
    config.model.name = "tiny"
    assert "base model" in power_lines(config, 3, {"summarisation": 100})[0], "the table has other tasks"


def test_the_power_by_the_base_models_scores(config, tmp_path):
    run = write_run(tmp_path / "outputs", noise=0.0, examples=400)
    (tmp_path / "outputs" / "broken").mkdir()
    (tmp_path / "outputs" / "broken" / "run.json").write_text("{")
    head, *lines = power_lines(config, 3, dict.fromkeys(TASKS, 400))
    assert head.endswith("1,600 examples, from the base model's scores, so over examples only:")
    # The difficulty of an example has the deviation 0.12, so the error is √2 · 0.12 / √1600, and 2.8 of it are needed.
    assert numbers(lines[0])[0] == pytest.approx(2.8 * 2**0.5 * 0.12 / 40, rel=0.15)
    assert numbers(lines[0])[1] is None
    assert 1_600 < numbers(lines[0])[2] < 6_400
    for path in (run / "eval" / "base").glob("*.jsonl"):  # a metric that every example has at 0
        path.write_text(path.read_text().replace('"scores": {', '"scores": {"exact_match": 0.0, '))
    lines.insert(0, "  exact: unknown, since it is the same in all these scores")
    assert power_lines(config, 3, dict.fromkeys(TASKS, 400)) == [head, *lines]
    path = run / "eval" / "base" / "held_out_pool.jsonl"
    path.write_text((run / "eval" / "base" / "summarisation.jsonl").read_text().replace("0.", "9."))
    assert power_lines(config, 3, {**dict.fromkeys(TASKS, 400), "held_out_pool": 400}) == [head, *lines]
    path = run / "eval" / "base" / "summarisation.jsonl"
    path.write_text("".join(json.dumps({"id": number}) + "\n" for number in range(3)))
    assert power_lines(config, 3, dict.fromkeys(TASKS, 400))[0].startswith("power: unknown")
