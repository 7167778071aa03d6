"""What every tracker gets at the end of a run; and whatever breaks in a tracker costs one warning, never the run."""

import json
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest

from tometune import tracking
from tometune.common.errors import UserError
from tometune.config.tracking import Tracker, TrackingConfig
from tometune.tracking import RunLabels, check_tracker, start_tracker
from tometune.tracking.tracker import RunTracker, flatten, prediction_tables, sanitise


def write_predictions(folder: Path, stage: str, task: str, count: int) -> None:
    """Write `count` scored examples as a run does."""
    path = folder / "eval" / stage / f"{task}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for n in range(count):
            answer = {"prediction": f"{stage} answer {n}", "references": ["one", "two"], "scores": {"rouge1": n / 10}}
            print(json.dumps({"id": f"{task}-{n}", "prompt": f"Question {n}?", **answer}), file=file)


def test_nested_values_are_flattened():
    record = {"eval": {"base": {"rouge1": 0.3, "tasks": {"qa": {"examples": 4}}}}, "name": "x"}
    assert flatten(record, "/") == {"eval/base/rouge1": 0.3, "eval/base/tasks/qa/examples": 4, "name": "x"}


def test_prediction_tables_hold_every_stage_and_fill_what_a_row_lacks(tmp_path):
    write_predictions(tmp_path, "base", "qa", 5)
    write_predictions(tmp_path, "tuned", "qa", 5)
    columns, rows = prediction_tables(tmp_path, 2)["qa"]
    assert columns == ["stage", "id", "prompt", "prediction", "references", "scores.rouge1"]
    assert [row[:2] for row in rows] == [["base", "qa-0"], ["base", "qa-1"], ["tuned", "qa-0"], ["tuned", "qa-1"]]
    assert rows[3] == ["tuned", "qa-1", "Question 1?", "tuned answer 1", "one\n\ntwo", 0.1]
    (tmp_path / "eval" / "base" / "qa.jsonl").write_text('{"id": 1}\n{"id": 2, "scores": {"bleu": 3.5}}\n')
    (tmp_path / "eval" / "tuned" / "qa.jsonl").unlink()
    expected = {"qa": (["stage", "id", "scores.bleu"], [["base", 1, None], ["base", 2, 3.5]])}
    assert prediction_tables(tmp_path, 5) == expected


def test_sanitise_keeps_the_hash_at_the_end():
    assert sanitise("a:b;c,d#e?f/g'h\\i", 64) == "a_b_c_d_e_f_g_h_i"
    assert sanitise("m" * 100 + "-s0-abcdef01", 64) == "m" * 52 + "-s0-abcdef01"


@pytest.fixture
def labels(tmp_path):
    return RunLabels("run", "train", "g", tmp_path / "run", {})


def track_with_a_broken(method, error, labels):
    """Use every method of a tracker in which one raises, as a training does."""
    calls = []

    def fail(self, *arguments, **options):
        calls.append(arguments)
        raise error

    fail.__name__ = method
    made = type("Broken", (RunTracker,), {"CONNECTION_ERRORS": (ConnectionError,), method: fail})
    folder = labels.folder
    (folder / "adapter").mkdir(parents=True)
    (folder / "mix.json").write_text("{}")
    write_predictions(folder, "base", "qa", 2)
    record = {"data": {"rows": 3}, "train": {"steps": 2}, "eval": {"base": {"rouge1": 0.5}}, "model": {"name": "tiny"}}
    with made(TrackingConfig(), labels) as tracker:
        for step in range(3):
            tracker.log({"train/loss": 1.0}, step)
        tracker.results(record, folder)
        tracker.page("report", "<p>")
    return tracker.describe(), len(calls)


@pytest.mark.parametrize("method", ["log", "summary", "table", "page", "artifact", "finish", "describe"])
def test_a_method_that_raises_is_one_warning(method, labels, caplog):
    described, calls = track_with_a_broken(method, ValueError("no\nmore"), labels)
    assert calls > 0
    warnings = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert warnings == [f"wandb: {method} failed (no more); the run continues"]
    assert described == ({"tracker": "wandb"} if method == "describe" else {"tracker": "none"})


def test_a_lost_connection_is_not_tried_again(labels):
    assert track_with_a_broken("log", ConnectionError(), labels)[1] == 1


def test_broken_predictions_are_a_warning(labels, caplog):
    path = labels.folder / "eval" / "base" / "qa.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("{broken")
    RunTracker(TrackingConfig(tracker=Tracker.none), labels).results({"model": {}}, labels.folder)
    assert "none: results failed" in caplog.text


def test_a_tracker_that_does_not_start_is_a_warning_and_a_wrong_setting_an_error(labels, caplog, monkeypatch):
    def fail(*_):
        raise error

    module = SimpleNamespace(check=fail, TRACKER=fail)
    monkeypatch.setattr(tracking, "_module", lambda config: module)
    error = OSError("disk full")
    check_tracker(TrackingConfig())
    reason = "wandb could not be started (disk full)"
    assert start_tracker(TrackingConfig(), labels).describe() == {"tracker": "none", "reason": reason}
    assert f"{reason}; the run continues without a tracker" in caplog.text
    error = UserError("tracking.tags: too long")
    with pytest.raises(UserError):
        check_tracker(TrackingConfig())
    with pytest.raises(UserError):
        start_tracker(TrackingConfig(), labels)
