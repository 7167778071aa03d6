import json
from hashlib import sha256
from types import SimpleNamespace

import numpy as np
import pytest

from tests.reporting.sweeps import TASKS, change_rows, editing
from tometune.common.errors import UserError
from tometune.reporting.analysis import build
from tometune.reporting.report_files import as_markdown
from tometune.reporting.score_files import load_scores, read_task, same_length_rouge
from tometune.reporting.sweep import read_sweep

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


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{broken", "not a line of scores"),
        ("", "not a line of scores"),
        ('{"id": "1"}', "has no 'scores'"),
        ('{"id": "1", "scores": {"rouge1": NaN, "rouge2": 0, "rougeL": 0}}', "a score is not a number"),
        (f'{{"id": "{TASK}-0", "scores": {{"rouge1": 0, "rouge2": 0, "rougeL": 0}}}}', f"the id {TASK}-0 occurs twice"),
    ],
)
def test_a_broken_line_is_named(path, line, problem):
    content = path.read_text().splitlines()
    path.write_text("\n".join([*content[:6], line, *content[7:]]))
    with pytest.raises(UserError, match=rf"{path.name}:7: .*{problem}") as error:
        read_task(path)
    assert "\n" not in str(error.value)


def test_a_line_separator_in_a_text_is_no_new_line_and_missing_or_empty_files_are_rejected(path):
    change_rows(path, lambda row: row.update(prediction="a\\u2028b"))
    path.write_text(path.read_text().replace("\\\\u2028", "\u2028"), encoding="utf-8")
    assert "\u2028" in path.read_text()
    assert len(read_task(path)) == 30
    path.write_text("")
    with pytest.raises(UserError, match="no examples"):
        read_task(path)
    path.unlink()
    with pytest.raises(UserError, match="no such file, although the run is completed"):
        read_task(path)


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


def test_runs_that_disagree_on_the_base_model_are_a_note(sweep, run, report):
    change_rows(run / "eval" / "base" / f"{TASK}.jsonl", lambda row: row["scores"].update(rougeL=0.9))
    (note,) = report(sweep).table["notes"]
    assert "Row before tiny: the runs disagree on this score (ROUGE-L 0." in note


def test_the_metrics_of_all_tasks_are_in_the_table_and_the_order_of_tasks_does_not_matter(sweep, table, report):
    """A metric that nothing in the report knows, and one that a single task lacks."""
    for run in sorted(sweep.iterdir())[1:]:
        with editing(run) as record:
            for stage in record["eval"].values():
                stage["tasks"] = dict(reversed(stage["tasks"].items()))
    assert report(sweep).table == table
    for path in sweep.glob("*/eval/*/*.jsonl"):
        rare = {} if path.stem == TASKS[0] else {"rare": 1.0}
        change_rows(path, lambda row, rare=rare: row["scores"].update(new=row["scores"]["rouge1"] / 2, **rare))
    found = report(sweep).table
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
