import json

import numpy as np
import pytest

from tests.reporting.sweeps import TASKS, edit
from tometune.common.errors import UserError
from tometune.reporting.scores import load_scores, read_task
from tometune.reporting.sweep import read_sweep
from tometune.reporting.text import as_markdown


def load(folder):
    return load_scores(read_sweep(folder).runs)


def lines(path):
    return path.read_text().splitlines(keepends=True)


@pytest.fixture
def path(sweep):
    return sorted(sweep.iterdir())[4] / "eval" / "tuned" / f"{TASKS[2]}.jsonl"


def test_one_array_a_task(sweep):
    scores = load(sweep)
    assert list(scores.tasks) == list(TASKS)
    assert {values.shape for values in scores.tasks.values()} == {(30, 10, 3)}
    assert list(scores.columns)[-1] == "before tiny"
    run = sorted(sweep.iterdir())[4]
    record = json.loads((run / "run.json").read_text())
    mean = scores.tasks[TASKS[2]][:, scores.columns[run.name]].mean(axis=0)
    entry = record["eval"]["tuned"]["tasks"][TASKS[2]]
    assert mean == pytest.approx([entry["rouge1"], entry["rouge2"], entry["rougeL"]])


def test_examples_are_paired_by_id_not_by_line(sweep, path):
    before = load(sweep)
    path.write_text("".join(reversed(lines(path))))
    after = load(sweep)
    assert all(np.array_equal(before.tasks[task], after.tasks[task]) for task in TASKS)


@pytest.mark.parametrize(
    "line", ["{broken\n", "[]\n", '{"id": "1"}\n', '{"id": "1", "scores": {"rouge1": NaN}}\n', "\n"]
)
def test_a_broken_line_is_named(path, line):
    content = lines(path)
    content[6] = line
    path.write_text("".join(content))
    with pytest.raises(UserError, match=rf"{path.name}:7: ") as error:
        read_task(path)
    assert "\n" not in str(error.value)


def test_a_line_separator_inside_a_text_is_no_new_line(path):
    row = json.loads(lines(path)[0]) | {"prediction": "a\u2028b"}
    path.write_text(json.dumps(row, ensure_ascii=False) + "\n" + "".join(lines(path)[1:]), encoding="utf-8")
    assert len(read_task(path).ids) == 30


def test_missing_and_empty_files(path):
    path.write_text("")
    with pytest.raises(UserError, match="no examples"):
        read_task(path)
    path.unlink()
    with pytest.raises(UserError, match="no such file, although the run is completed"):
        read_task(path)


def test_other_examples_are_rejected_and_named(sweep, path):
    content = lines(path)
    path.write_text("".join(content[5:]) + content[0].replace(f"{TASKS[2]}-0", "new"))
    with pytest.raises(UserError) as error:
        load(sweep)
    text = str(error.value)
    assert text.startswith(f"{TASKS[2]}: runs with different examples cannot be paired; only in {path}: new; only in ")
    assert f"{TASKS[2]}-0, {TASKS[2]}-1, {TASKS[2]}-2 and 2 more" in text


def test_other_references_under_the_same_ids_are_rejected(sweep, path):
    path.write_text(path.read_text().replace("reference 3", "another"))
    with pytest.raises(UserError, match=f"other references than in .* for {TASKS[2]}-3"):
        load(sweep)


def test_other_tasks_are_rejected(sweep):
    run = sorted(sweep.iterdir())[4]
    record = json.loads((run / "run.json").read_text())
    del record["eval"]["tuned"]["tasks"][TASKS[1]]
    edit(run, eval=record["eval"])
    with pytest.raises(UserError, match=rf"{run.name}: scored on other tasks .*not in both: {TASKS[1]}"):
        load(sweep)


def test_runs_that_do_not_agree_on_the_base_model_are_a_note(sweep, report):
    path = sorted(sweep.iterdir())[4] / "eval" / "base" / f"{TASKS[2]}.jsonl"
    rows = [json.loads(line) for line in lines(path)]
    for row in rows:
        row["scores"]["rougeL"] += 0.08
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (note,) = load(sweep).notes
    assert "Row before tiny: the runs disagree on this score (ROUGE-L 0." in note
    assert "up to 0.0800 on one task" in note
    assert note in report(sweep).table["notes"]


def test_tasks_in_any_order(sweep, report):
    before = report(sweep).table
    for run in sorted(sweep.iterdir())[1:]:
        record = json.loads((run / "run.json").read_text())
        for stage in record["eval"].values():
            stage["tasks"] = dict(reversed(stage["tasks"].items()))
        edit(run, eval=record["eval"])
    assert report(sweep).table == before


def test_every_metric_that_all_tasks_have_is_in_the_table(sweep, report):
    """A metric that nothing in the report knows, and one that a single task lacks."""
    for path in sweep.glob("*/eval/*/*.jsonl"):
        rows = [json.loads(line) for line in lines(path)]
        for row in rows:
            row["scores"] |= {"brand_new": row["scores"]["rouge1"] / 2}
            row["scores"] |= {"rare": 1.0} if path.stem != TASKS[0] else {}
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = report(sweep)
    assert made.table["metrics"] == ["rouge1", "rouge2", "rougeL", "brand_new"]
    last = made.table["rows"][-1]
    assert last["brand_new"]["mean"] == pytest.approx(last["rouge1"]["mean"] / 2, abs=1e-5)
    assert len(made.table["comparisons"]) == 12
    assert "| brand_new |" in as_markdown(made.table)
