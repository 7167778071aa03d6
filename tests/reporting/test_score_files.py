import json

import numpy as np
import pytest

from tests.reporting.sweeps import TASKS, editing
from tometune.common.errors import UserError
from tometune.reporting.report_files import as_markdown
from tometune.reporting.score_files import load_scores, read_task
from tometune.reporting.sweep import read_sweep


def load(folder):
    return load_scores(read_sweep(folder).runs, 10)


def lines(path):
    return path.read_text().splitlines(keepends=True)


def change_rows(path, change):
    rows = [json.loads(line) for line in lines(path)]
    for row in rows:
        change(row)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def run(sweep):
    return sorted(sweep.iterdir())[4]


@pytest.fixture
def path(run):
    return run / "eval" / "tuned" / f"{TASKS[2]}.jsonl"


def test_every_run_and_base_model_has_a_column_with_its_means(sweep, run):
    scores = load(sweep)
    assert scores.examples == dict.fromkeys(TASKS, 30)
    assert scores.columns == [*sorted(path.name for path in sweep.iterdir()), "before tiny"]
    assert scores.means.shape == (4, 10, 3)
    assert scores.resampled.shape == (4, 10, 10, 3)
    with editing(run) as record:
        for stage, column in (("tuned", run.name), ("base", "before tiny")):
            entry = record["eval"][stage]["tasks"][TASKS[2]]
            found = [scores.of_runs([column], metric, TASKS[2])[0] for metric in scores.metrics]
            assert found == pytest.approx([entry["rouge1"], entry["rouge2"], entry["rougeL"]])
        assert scores.of_runs([run.name], "rougeL") == pytest.approx([record["eval"]["tuned"]["rougeL"]])


def test_examples_are_paired_by_id_not_by_line(sweep, path):
    before = load(sweep)
    path.write_text("".join(reversed(lines(path))))
    assert np.allclose(before.resampled, load(sweep).resampled)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{broken\n", "not a line of scores"),
        ("[]\n", "not a line of scores"),
        ('{"id": "1"}\n', "has no 'scores'"),
        ('{"id": "1", "scores": {"rouge1": NaN, "rouge2": 0, "rougeL": 0}}\n', "a score is not a number"),
        ("\n", "not a line of scores"),
        (0, f"the id {TASKS[2]}-0 occurs twice"),
    ],
)
def test_a_broken_line_is_named(path, line, problem):
    content = lines(path)
    content[6] = content[0] if line == 0 else line
    path.write_text("".join(content))
    with pytest.raises(UserError, match=rf"{path.name}:7: .*{problem}") as error:
        read_task(path)
    assert "\n" not in str(error.value)


def test_a_line_separator_inside_a_text_is_no_new_line(path):
    row = json.loads(lines(path)[0]) | {"prediction": "a\u2028b"}
    path.write_text(json.dumps(row, ensure_ascii=False) + "\n" + "".join(lines(path)[1:]), encoding="utf-8")
    assert len(read_task(path)) == 30


def test_missing_and_empty_files_are_rejected(path):
    path.write_text("")
    with pytest.raises(UserError, match="no examples"):
        read_task(path)
    path.unlink()
    with pytest.raises(UserError, match="no such file, although the run is completed"):
        read_task(path)


def test_runs_with_other_examples_references_or_tasks_are_rejected(sweep, run, path):
    text, content = path.read_text(), lines(path)
    path.write_text("".join(content[5:]) + content[0].replace(f"{TASKS[2]}-0", "new"))
    with pytest.raises(UserError) as error:
        load(sweep)
    start = f"{TASKS[2]}: runs with different examples cannot be paired; only in {path}: new; only in "
    assert str(error.value).startswith(start)
    assert f"{TASKS[2]}-0, {TASKS[2]}-1, {TASKS[2]}-2 and 2 more" in str(error.value)
    path.write_text(text.replace("reference 3", "another"))
    with pytest.raises(UserError, match=f"other references than in .* for {TASKS[2]}-3"):
        load(sweep)
    with editing(run) as record:
        del record["eval"]["tuned"]["tasks"][TASKS[1]]
    with pytest.raises(UserError, match=rf"{run.name}: scored on other tasks .*not in both: {TASKS[1]}"):
        load(sweep)


def test_runs_that_disagree_on_the_base_model_are_a_note(sweep, run, report):
    change_rows(run / "eval" / "base" / f"{TASKS[2]}.jsonl", lambda row: row["scores"].update(rougeL=0.9))
    (note,) = report(sweep).table["notes"]
    assert "Row before tiny: the runs disagree on this score (ROUGE-L 0." in note


def test_the_order_of_tasks_does_not_matter(sweep, table, report):
    for run in sorted(sweep.iterdir())[1:]:
        with editing(run) as record:
            for stage in record["eval"].values():
                stage["tasks"] = dict(reversed(stage["tasks"].items()))
    assert report(sweep).table == table


def test_every_metric_that_all_tasks_have_is_in_the_table(sweep, report):
    """A metric that nothing in the report knows, and one that a single task lacks."""
    for path in sweep.glob("*/eval/*/*.jsonl"):
        rare = {} if path.stem == TASKS[0] else {"rare": 1.0}
        change_rows(path, lambda row, rare=rare: row["scores"].update(new=row["scores"]["rouge1"] / 2, **rare))
    table = report(sweep).table
    assert table["metrics"] == ["rouge1", "rouge2", "rougeL", "new"]
    last = table["rows"][-1]
    assert last["new"]["mean"] == pytest.approx(last["rouge1"]["mean"] / 2, abs=1e-5)
    assert len(table["comparisons"]) == 12
    assert "| new |" in as_markdown(table)
