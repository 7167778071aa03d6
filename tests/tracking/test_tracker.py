"""What every tracker is told at the end of a run."""

import json
from pathlib import Path

from tometune.tracking.tracker import flatten, prediction_tables, sanitise


def write_predictions(folder: Path, stage: str, task: str, count: int) -> None:
    """Write `count` scored examples as a run does."""
    path = folder / "eval" / stage / f"{task}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = (
        {
            "id": f"{task}-{n}",
            "prompt": f"Question {n}?",
            "prediction": f"{stage} answer {n}",
            "references": ["one", "two"],
            "scores": {"rouge1": n / 10},
        }
        for n in range(count)
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_nested_values_are_flattened():
    record = {"eval": {"base": {"rouge1": 0.3, "tasks": {"qa": {"examples": 4}}}}, "name": "x"}
    assert flatten(record, "/") == {"eval/base/rouge1": 0.3, "eval/base/tasks/qa/examples": 4, "name": "x"}


def test_prediction_tables_hold_every_stage(tmp_path):
    write_predictions(tmp_path, "base", "qa", 5)
    write_predictions(tmp_path, "tuned", "qa", 5)
    columns, rows = prediction_tables(tmp_path, 2)["qa"]
    assert columns == ["stage", "id", "prompt", "prediction", "references", "scores.rouge1"]
    assert [row[:2] for row in rows] == [["base", "qa-0"], ["base", "qa-1"], ["tuned", "qa-0"], ["tuned", "qa-1"]]
    assert rows[3] == ["tuned", "qa-1", "Question 1?", "tuned answer 1", "one\n\ntwo", 0.1]


def test_prediction_tables_fill_what_a_row_lacks(tmp_path):
    folder = tmp_path / "eval" / "base"
    folder.mkdir(parents=True)
    (folder / "qa.jsonl").write_text('{"id": 1}\n{"id": 2, "scores": {"bleu": 3.5}}\n')
    assert prediction_tables(tmp_path, 5) == {
        "qa": (["stage", "id", "scores.bleu"], [["base", 1, None], ["base", 2, 3.5]])
    }


def test_sanitise_keeps_the_hash_at_the_end():
    assert sanitise("a:b;c,d#e?f/g'h\\i", 64) == "a_b_c_d_e_f_g_h_i"
    assert sanitise("m" * 100 + "-s0-abcdef01", 64) == "m" * 52 + "-s0-abcdef01"
