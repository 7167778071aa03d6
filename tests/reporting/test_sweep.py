"""The runs of a sweep folder, their cells, the pairs of cells that are compared, and the scores of their examples."""

import json
import shutil
from hashlib import sha256
from operator import attrgetter
from types import SimpleNamespace

import numpy as np
import pytest

from tests.reporting.sweeps import TASKS, change_rows, edit, editing, write_run, write_table
from tometune.common.errors import UserError
from tometune.config.root import Config
from tometune.reporting.analysis import build
from tometune.reporting.grouping import expected_seeds, group, one_factor, pairs
from tometune.reporting.report_files import as_markdown
from tometune.reporting.score_files import load_scores, read_task, same_length_rouge
from tometune.reporting.sweep import planned, read_sweep
from tometune.runs.sweep_file import SCHEMA, Cell
from tometune.sweep.cells import list_cells


def grouped(folder):
    return group(read_sweep(folder))


def test_runs_have_their_settings_and_seeds_and_other_folders_are_no_runs(sweep):
    write_run(sweep / "wandb" / "inner")
    found = read_sweep(sweep)
    assert (len(found.runs), found.missing, found.notes) == (9, [], [])
    run = found.runs[-1]
    assert (run.model, run.data, run.rows) == ("tiny", "pydocs_3k", 3000)
    assert run.streams == {"data": 2, "order": 2, "adapter": 2, "generation": 2}
    assert (run.settings["trainer.learning_rate"], run.settings["model.revision"]) == (2e-4, "1")
    assert not any(key.startswith(("seeds", "tracking", "paths")) for key in run.settings)


BROKEN = [  # changes of run.json, its new content, or None without one; the reason
    ({"status": "failed", "error": "OutOfMemoryError: full"}, "failed: OutOfMemoryError: full"),
    ({"status": "running"}, "running or interrupted"),
    ({"schema": 2}, "/"),
    ({"eval": {"base": {}}}, "completed without scores"),
    (None, "interrupted before run.json was written"),
    ('{"schema": 1, "status": "comp', "run.json is broken or truncated (Unterminated string starting at"),
    ("[1]", "run.json is not a record; repeat the command that made this run"),
    ({"model": {}}, "run.json is incomplete (KeyError('name')); repeat the command"),
    *(({key: None}, "run.json ") for key in ("model", "data", "seed", "eval")),
]


def test_a_run_that_is_not_completed_or_broken_is_missing_with_a_reason(tmp_path, caplog):
    """A broken record is also one warning with its file."""
    runs = [write_run(tmp_path, seed=seed, examples=1) for seed in range(len(BROKEN) + 1)]
    for run, (change, _) in zip(runs, BROKEN, strict=False):
        if change is None:
            (run / "run.json").unlink()
        elif isinstance(change, str):
            (run / "run.json").write_text(change)
        else:
            edit(run, **change)
    found = read_sweep(tmp_path)
    assert [run.folder for run in found.runs] == runs[-1:]
    missing = {cell.seed: cell for cell in found.missing}
    for seed, (run, (_, reason)) in enumerate(zip(runs, BROKEN, strict=False)):
        cell = missing.pop(seed)
        assert cell.reason.startswith(reason)
        assert ("another version of tometune wrote it" in cell.reason) == (reason == "/")
        assert (cell.run_id, cell.model, cell.data) == (run.name, "tiny", "pydocs_1k")
        warnings = [line.message for line in caplog.records if line.message.startswith(f"{run / 'run.json'}: ")]
        assert len(warnings) == reason.startswith("run.json")
    assert missing == {}


def test_cells_of_sweep_json_without_a_run_are_missing(sweep):
    there = sorted(path.name for path in sweep.iterdir())
    absent = Cell("tiny-pydocs_9k-s4-0", ["data=pydocs_9k", "seed=4", "+sweep=table"], "tiny", "pydocs_9k", 10, 4)
    # A wrong config has no run id: such a cell goes by what makes it differ.
    wrong = Cell(None, ["hydra/launcher=processes", "lora.r=0"], "tiny", "x", 10, 3, error="lora.r=0: no")
    cells = [*(Cell(name, []) for name in there[:-1]), absent, wrong]
    content = {"schema": SCHEMA, "cells": [entry.listed() for entry in cells]}
    (sweep / "sweep.json").write_text(json.dumps(content))
    found = read_sweep(sweep)
    assert [(cell.run_id, cell.model, cell.data, cell.seed, cell.reason) for cell in found.missing] == [
        ("hydra/launcher=processes lora.r=0", "tiny", "x", 3, "failed: lora.r=0: no"),
        ("tiny-pydocs_9k-s4-0", "tiny", "pydocs_9k", 4, "not started"),
    ]
    assert found.notes == [f"Not listed in sweep.json but included: {there[-1]}."]


def test_folders_that_cannot_be_reported_on(tmp_path):
    folder = tmp_path / "table"
    folder.mkdir()
    with pytest.raises(UserError, match="zzz: no such sweep folder; sweeps found: table"):
        read_sweep(tmp_path / "zzz")
    with pytest.raises(UserError, match="table: holds no runs; make some"):
        read_sweep(folder)
    edit(write_run(folder), status="failed", error="no")
    with pytest.raises(UserError, match=r"none of its 1 runs is completed \(tiny.*: failed: no\)"):
        read_sweep(folder)


RANKS = [{"lora.r": rank} for rank in (8, 16, 4)]
ALPHAS = [{"lora.r": rank, "lora.lora_alpha": rank} for rank in (8, 16, 4)]
TOGETHER = "lora.lora_alpha changes together with lora.r, so the comparisons cover both."
SIZES = [{"data.name": f"d{rows}", "data.rows": rows} for rows in (20_000, 3_000)]
MODELS = [{**size, "model.name": model} for model in ("tiny", "small") for size in SIZES]
BOTH = [{**size, **rank} for size in SIZES for rank in RANKS[1:]]
FULL = [RANKS[0], RANKS[2], {"lora.enabled": False, "lora.r": 8}]
STEPS = [{**size, "trainer.max_steps": size["data.rows"] // 100} for size in SIZES]
ALL = ["10", "20", "21"]  # of three cells, each with those before it
NOTE = "trainer.max_steps changes together with the data (d3000: 30, d20000: 200), so the comparisons cover both."


@pytest.mark.parametrize(
    ("changes", "labels", "compared", "notes"),
    [
        (RANKS, ["x lora.r=4", "x lora.r=8", "x lora.r=16"], ALL, []),
        (ALPHAS, ["x lora.r=4", "x lora.r=8", "x lora.r=16"], ALL, [TOGETHER]),
        (MODELS, ["small d3000", "small d20000", "tiny d3000", "tiny d20000"], ["10", "32"], []),
        (BOTH, [f"d{rows} lora.r={rank}" for rows in (3000, 20000) for rank in (4, 16)], ["10", "20", "31", "32"], []),
        (FULL, ["x lora=adapter lora.r=4", "x lora=adapter lora.r=8", "x lora=full"], ALL, []),
        (STEPS, ["d3000", "d20000"], ["10"], [NOTE]),
        ([{"seeds.data": value} for value in (3, 4, 5)], ["x"], [], []),
    ],
    ids=["settings", "together", "models", "two things", "full fine-tuning", "steps", "one stream"],
)
def test_cells_are_labelled_by_what_differs_and_compared_if_one_thing_does(tmp_path, changes, labels, compared, notes):
    configs = []
    for change in changes:
        configs.append(Config())
        for key, value in {"model.name": "tiny", "data.name": "x", **change}.items():
            name, _, field = key.partition(".")
            setattr(attrgetter(name)(configs[-1]), field, value)
    cells, found_notes = group(planned(tmp_path, configs))
    found = [f"{cells.index(a)}{cells.index(b)}" for a, b in pairs(cells)]
    assert ([cell.label for cell in cells], found, found_notes) == (labels, compared, notes)


def test_runs_with_single_streams_set_count_for_the_variance_only(tmp_path):
    for setting in ({stream: value} for stream in ("data", "order") for value in (7, 8)):
        write_run(tmp_path, streams=setting, examples=1)
    with pytest.raises(UserError, match="every run sets single streams"):
        grouped(tmp_path)
    for seed in (0, 1, 2):
        write_run(tmp_path, seed=seed, examples=1)
    (cell,), notes = grouped(tmp_path)
    assert (list(cell.runs), len(cell.stream_runs)) == ([0, 1, 2], 4)
    groups = {stream: [len(runs) for runs in one_factor(cell, stream)] for stream in ("data", "order", "adapter")}
    assert groups == {"data": [3], "order": [3], "adapter": []}
    assert notes == ["Runs with separately set streams (4) count for the variance by cause only."]


def test_runs_with_the_same_seeds_and_mixes_with_other_rows_are_rejected(tmp_path):
    first, second = (write_run(tmp_path, streams={"order": order}, examples=1) for order in (0, 5))
    twin = first.with_name("tiny-pydocs_1k-s0-ffffffff")
    shutil.copytree(first, twin)
    with pytest.raises(UserError, match=f"{first.name} and {twin.name}: the same settings and seeds,"):
        grouped(tmp_path)
    shutil.rmtree(twin)
    edit(second, data={"name": "pydocs_1k", "rows": 1000, "digest": "x"})
    with pytest.raises(UserError, match=r"the same settings and seeds\.data but other rows, so"):
        grouped(tmp_path)


@pytest.mark.parametrize(
    ("change", "label", "note"),
    [
        ({"inputs": {"data.base": f"files-{'b' * 20}"}}, "data.base=files-bbbbbbbb", "content of data.base"),
        ({"model": {"name": "tiny", "dtype": "bfloat16"}}, "model.dtype=bfloat16", "number format of the model"),
        ({"meaning": 4}, "meaning=4", "version of tometune"),
    ],
)
def test_runs_that_differ_in_more_than_seeds_are_different_cells(tmp_path, change, label, note):
    same = {"inputs": {"data.base": f"files-{'a' * 20}"}, "model": {"name": "tiny", "dtype": "float32"}}
    for seed in range(3):
        run = write_run(tmp_path, seed=seed, examples=1)
        edit(run, **{"meaning": 5, **same, **(change if seed == 2 else {})})
    cells, (text,) = grouped(tmp_path)
    assert sorted(list(cell.runs) for cell in cells) == [[0, 1], [2]]
    assert f"pydocs_1k {label}" in [cell.label for cell in cells]
    assert text.startswith(f"The {note}")
    for runs in ("2 runs", "1 run"):
        assert f": {runs}, the last one of 2026-11-24" in text


def test_a_mix_with_another_pool_is_compared_with_the_base_alone(tmp_path):
    base = {"data.base": f"files-{'a' * 20}"}
    for seed in range(2):
        edit(write_run(tmp_path, "d1000", 1_000, seed=seed, examples=1), inputs=base)
        pool = {"data.pool": f"files-{'bc'[seed] * 20}"}
        edit(write_run(tmp_path, "d2000", 2_000, seed=seed, examples=1), inputs=base | pool)
    found, _ = grouped(tmp_path)
    cells, compared = [cell.label for cell in found], [(a.label, b.label) for a, b in pairs(found)]
    assert cells == ["d1000", "d2000 data.pool=files-bbbbbbbb", "d2000 data.pool=files-cccccccc"]
    assert [b for _, b in compared] == ["d1000", "d1000", "d2000 data.pool=files-bbbbbbbb"]


def test_missing_seeds_are_expected_where_they_belong(tmp_path):
    folders = write_table(tmp_path / "sizes", examples=1)
    settings = [{"lora.r": rank} for rank in (16, 4)]
    ranks = [write_run(tmp_path / "ranks", seed=n, settings=own, examples=1) for own in settings for n in (0, 1)]
    for folder in (folders[1], folders[5], ranks[0]):
        edit(folder, status="running")
    for name, expected in (("sizes", [3, 3, 3]), ("ranks", [2, 2])):
        found = read_sweep(tmp_path / name)
        assert [expected_seeds(cell, found.missing) for cell in group(found)[0]] == expected


def test_a_run_that_never_started_belongs_to_the_cell_of_its_values(tmp_path):
    """sweep.json has its overrides, as they were typed, and the name that `data=mine` has become."""
    overrides = ["data=mine", "trainer.learning_rate=2e-4", "seed=1"]
    write_run(tmp_path, "mine_4k", seed=0, settings={"trainer.learning_rate": 0.0002}, examples=1)
    list_cells(tmp_path, [Cell("tiny-mine_4k-s1-00000000", overrides, "tiny", "mine_4k", 1000, 1)])
    found = read_sweep(tmp_path)
    assert [expected_seeds(cell, found.missing) for cell in group(found)[0]] == [2]
    assert [(each.data, each.seed) for each in found.missing] == [("mine_4k", 1)]


TASK = TASKS[2]


def load(folder):
    return load_scores(read_sweep(folder).runs, 10)


@pytest.fixture
def run(sweep):
    return sorted(sweep.iterdir())[4]


@pytest.fixture
def path(run):
    return run / "eval" / "tuned" / f"{TASK}.jsonl"


def test_examples_are_paired_by_id_not_by_line(sweep, run, path):
    scores = load(sweep)
    assert scores.columns == [*sorted(path.name for path in sweep.iterdir()), "before tiny"]
    entry = json.loads((run / "run.json").read_text())["eval"]["tuned"]["tasks"][TASK]
    assert scores.of_runs([run.name], "rouge2", TASK) == pytest.approx([entry["rouge2"]])
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    again = load(sweep)
    assert all(np.allclose(found, again.resampled[key]) for key, found in scores.resampled.items())


def test_broken_lines_and_missing_or_empty_files_are_named(path):
    content, twice = path.read_text().splitlines(), '{"rouge1": 0, "rouge2": 0, "rougeL": 0}'
    for line, problem in (
        ("{broken", "not a line of scores"),
        ("", "not a line of scores"),
        ('{"id": "1"}', "has no 'scores'"),
        ('{"id": "1", "scores": {"rouge1": NaN, "rouge2": 0, "rougeL": 0}}', "a score is not a number"),
        (f'{{"id": "{TASK}-0", "scores": {twice}}}', f"the id {TASK}-0 occurs twice"),
    ):
        path.write_text("\n".join([*content[:6], line, *content[7:]]))
        with pytest.raises(UserError, match=rf"{path.name}:7: .*{problem}") as error:
            read_task(path)
        assert "\n" not in str(error.value)
    path.write_text("")
    with pytest.raises(UserError, match="no examples"):
        read_task(path)
    path.unlink()
    with pytest.raises(UserError, match="no such file, although the run is completed"):
        read_task(path)


def test_a_line_separator_in_a_text_is_no_new_line(path):
    change_rows(path, lambda row: row.update(prediction="a\\u2028b"))
    path.write_text(path.read_text().replace("\\\\u2028", "\u2028"), encoding="utf-8")
    assert "\u2028" in path.read_text()
    assert len(read_task(path)) == 30


def test_runs_with_other_examples_references_or_tasks_are_rejected(sweep, run, path):
    text = path.read_text()
    content = text.splitlines(keepends=True)
    path.write_text("".join(content[5:]) + content[0].replace(f"{TASK}-0", "new"))
    with pytest.raises(UserError) as error:
        load(sweep)
    start = f"{TASK}: runs with different examples cannot be paired; only in {path}: new; only in "
    assert str(error.value).startswith(start)
    assert f"{TASK}-0, {TASK}-1, {TASK}-2 and 2 more" in str(error.value)
    path.write_text(text.replace("reference 3", "another"))
    with pytest.raises(UserError, match=f"other references than in .* for {TASK}-3"):
        load(sweep)
    path.write_text(text)
    for folder, digest in ((sorted(sweep.iterdir())[-1], "a"), (run, "b")):
        scored = folder / "eval" / "tuned" / f"{TASK}.jsonl"
        of_file = {"key": {"task": digest}, "sha256": sha256(scored.read_bytes()).hexdigest()}
        scored.with_suffix(".json").write_text(json.dumps(of_file))
    again = rf"score both again: tometune evaluate run=\S+ && tometune evaluate run={sweep}"
    with pytest.raises(UserError, match=f"{TASK}: its content changed between .*{again}"):
        load(sweep)
    with editing(run) as record:
        del record["eval"]["tuned"]["tasks"][TASKS[1]]
    with pytest.raises(UserError, match=rf"{run.name}: scored on other tasks .*not in both: {TASKS[1]}"):
        load(sweep)


def test_runs_that_disagree_on_the_base_model_are_a_note(sweep, run):
    change_rows(run / "eval" / "base" / f"{TASK}.jsonl", lambda row: row["scores"].update(rougeL=0.9))
    (note,) = build(sweep, 100, 0.95).table["notes"]
    assert "Row before tiny: the runs disagree on this score (ROUGE-L 0." in note


def test_a_gain_is_that_over_the_base_scores_of_the_run_itself(tmp_path):
    """Two number formats under one name of the model."""
    for dtype, shift in (("bfloat16", 0.0), ("float32", 0.2)):
        for seed in range(2):
            run = write_run(tmp_path, "a", 1000, seed, 0.4 + shift, settings={"trainer.learning_rate": 1e-4 + shift})
            with editing(run) as record:
                record["model"]["dtype"] = dtype
            for path in run.glob("eval/base/*.jsonl"):
                change_rows(path, lambda row, shift=shift: row["scores"].update(rouge1=row["scores"]["rouge1"] + shift))
    gains = [row["gain"]["rouge1"]["delta"] for row in build(tmp_path, 100, 0.95).table["rows"][1:]]
    assert gains == pytest.approx([0.1, 0.1], abs=0.03)


def test_the_metrics_of_all_tasks_are_in_the_table_and_the_order_of_tasks_does_not_matter(sweep, table):
    """A metric that nothing in the report knows, and one that a single task lacks."""
    for run in sorted(sweep.iterdir())[1:]:
        with editing(run) as record:
            for stage in record["eval"].values():
                stage["tasks"] = dict(reversed(stage["tasks"].items()))
    assert build(sweep, 1_000, 0.95).table == table
    for path in sweep.glob("*/eval/*/*.jsonl"):
        rare = {} if path.stem == TASKS[0] else {"rare": 1.0}
        change_rows(path, lambda row, rare=rare: row["scores"].update(new=row["scores"]["rouge1"] / 2, **rare))
    found = build(sweep, 100, 0.95).table
    assert found["metrics"] == ["rouge1", "rouge2", "rougeL", "new"]
    last = found["rows"][-1]
    assert last["new"]["mean"] == pytest.approx(last["rouge1"]["mean"] / 2, abs=1e-5)
    assert len(found["comparisons"]) == 12
    assert "| new |" in as_markdown(found)


@pytest.mark.parametrize(
    ("prediction", "references", "rouge_l"),
    [
        ("the cat", ["the cat sat on the mat"], 1.0),
        ("the cat sat on the mat", ["the cat"], 1.0),
        ("a dog", ["no match", "a dog barks"], 1.0),  # the best reference counts
        ("a dog barks", ["a cat barks loudly"], pytest.approx(2 / 3)),
        ("", ["some words"], 0.0),
        ("我爱北京", ["我爱北京天安门"], 1.0),  # cut by characters, which are the words of this script
    ],
)
def test_both_texts_are_cut_to_the_shorter_one(tmp_path, prediction, references, rouge_l):
    path = tmp_path / "eval" / "tuned" / "qa.jsonl"
    path.parent.mkdir(parents=True)
    row = {"id": "1", "scores": {}, "prediction": prediction, "references": references}
    path.write_text(json.dumps(row, ensure_ascii=False) + "\n")
    assert same_length_rouge(SimpleNamespace(folder=tmp_path), "qa")[2] == rouge_l


def test_a_task_of_the_harness_is_a_metric_of_its_own_and_changes_no_other(sweep):
    before = load(sweep)
    for number, folder in enumerate(sorted(sweep.iterdir())):
        with editing(folder) as record:
            for stage, entry in record["eval"].items():
                entry["tasks"]["harness_x"] = {"acc": 0.0, "examples": 4}
                right = [float(n < 2 + number % 3) if stage == "tuned" else 0.0 for n in range(4)]
                lines = [json.dumps({"id": str(n), "scores": {"acc": score}}) + "\n" for n, score in enumerate(right)]
                (folder / "eval" / stage / "harness_x.jsonl").write_text("".join(lines))
    scores, names = load(sweep), sorted(path.name for path in sweep.iterdir())
    assert scores.metrics == [*before.metrics, "acc/harness_x"]
    assert scores.examples == before.examples
    assert scores.of_runs(names, "acc/harness_x").tolist() == [0.5, 0.75, 1.0] * 3
    assert scores.of_runs(["before tiny"], "acc/harness_x").tolist() == [0.0]
    for metric in before.metrics:
        for task in (None, *before.examples):
            assert np.array_equal(scores.of_runs(names, metric, task), before.of_runs(names, metric, task))
    assert np.isfinite(scores.on_resampled(names, "acc/harness_x")).all()
    assert build(sweep, 20, 0.95).table["metrics"] == scores.metrics
