"""What every tracker gets at the end of a run; and whatever breaks in a tracker costs one warning, never the run."""

import logging
from types import SimpleNamespace
from unittest import mock

import pytest

from tests.tracking.conftest import write_predictions
from tometune.common.errors import UserError
from tometune.config.tracking import Tracker, TrackingConfig
from tometune.tracking import tracker as tracking
from tometune.tracking.tracker import RunLabels, RunTracker, check_tracker, prediction_tables, sanitise, start_tracker


def test_prediction_tables_hold_every_stage_and_fill_what_a_row_lacks(tmp_path):
    write_predictions(tmp_path, "base", 5)
    write_predictions(tmp_path, "tuned", 5)
    columns, rows = prediction_tables(tmp_path, 2)["qa"]
    assert columns == ["stage", "id", "prompt", "prediction", "references", "scores.rouge1"]
    assert [row[:2] for row in rows] == [["base", "qa-0"], ["base", "qa-1"], ["tuned", "qa-0"], ["tuned", "qa-1"]]
    assert rows[3] == ["tuned", "qa-1", "user\nQuestion 1?", "tuned answer 1", "one\n\ntwo", 0.1]
    (tmp_path / "eval" / "base" / "qa.jsonl").write_text('{"id": 1}\n{"id": 2, "scores": {"bleu": 3.5}}\n')
    (tmp_path / "eval" / "tuned" / "qa.jsonl").unlink()
    expected = {"qa": (["stage", "id", "scores.bleu"], [["base", 1, None], ["base", 2, 3.5]])}
    assert prediction_tables(tmp_path, 5) == expected


def test_sanitise_keeps_the_hash_at_the_end():
    assert sanitise("a:b;c,d#e?f/g'h\\i", 64) == "a_b_c_d_e_f_g_h_i"
    assert sanitise("m" * 100 + "-s0-abcdef01", 64) == "m" * 52 + "-s0-abcdef01"


@pytest.fixture
def labels(tmp_path):
    folder = tmp_path / "run"
    (folder / "adapter").mkdir(parents=True)
    (folder / "mix.json").write_text("{}")
    write_predictions(folder, "base", 2)
    return RunLabels("run", "train", "g", folder, {})


def track(labels, config=TrackingConfig(), **methods):  # noqa: B008 -- only read
    """Use a tracker with these methods as a training does; return its entry in run.json."""
    made = type("Made", (RunTracker,), {"CONNECTION_ERRORS": (ConnectionError,), **methods})
    record = {"data": {"rows": 3}, "train": {"steps": 2}, "eval": {"base": {"rouge1": 0.5}}, "model": {"name": "tiny"}}
    with made(config, labels) as tracker:
        for step in range(3):
            tracker.log({"train/loss": 1.0}, step)
        tracker.results(record, labels.folder, dict)
        tracker.page("report", "<p>")
    return tracker.describe()


def test_adapter_and_predictions_can_be_left_out(labels):
    stored = []
    methods = {name: lambda _, name, *__: stored.append(name) for name in ("table", "artifact")}
    track(labels, **methods)
    assert stored == ["predictions/qa", "mix-run", "adapter-run"]
    stored.clear()
    track(labels, TrackingConfig(log_adapter=False, prediction_rows=0), **methods)
    assert stored == ["mix-run"]


@pytest.mark.parametrize("method", ["log", "summary", "table", "page", "artifact", "finish", "describe"])
def test_a_method_that_raises_is_one_warning(method, labels, caplog):
    fails = mock.Mock(side_effect=ValueError("no\nmore"), __name__=method)
    described = track(labels, **{method: fails})
    assert fails.called
    warnings = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert warnings == [f"wandb: {method} failed (no more); the run continues"]
    assert described == ({"tracker": "wandb"} if method == "describe" else {"tracker": "none"})


def test_a_lost_connection_is_not_tried_again(labels):
    fails = mock.Mock(side_effect=ConnectionError(), __name__="log")
    track(labels, log=fails)
    assert fails.call_count == 1


def test_broken_predictions_are_a_warning(labels, caplog):
    (labels.folder / "eval" / "base" / "qa.jsonl").write_text("{broken")
    tracker = RunTracker(TrackingConfig(tracker=Tracker.none), labels)
    tracker.results({"model": {}, "train": {"steps": 7}}, labels.folder, dict)
    assert "none: results failed" in caplog.text
    assert tracker.step == 7, "an attempt that found the training finished has logged no step itself"


def test_a_tracker_that_does_not_start_is_a_warning_and_a_wrong_setting_an_error(labels, caplog, monkeypatch):
    fails = mock.Mock(side_effect=OSError("disk full"))
    made = type("Made", (RunTracker,), {"__init__": fails})
    monkeypatch.setattr(tracking, "_module", lambda _: SimpleNamespace(check=fails, TRACKER=made))
    check_tracker(TrackingConfig())
    reason = f"wandb could not be started in {labels.folder} (disk full)"
    assert start_tracker(TrackingConfig(), labels).describe() == {"tracker": "none", "reason": reason}
    assert f"{reason}; the run continues without a tracker" in caplog.text
    fails.side_effect = UserError("tracking.tags: too long")
    for refused in (lambda: check_tracker(TrackingConfig()), lambda: start_tracker(TrackingConfig(), labels)):
        with pytest.raises(UserError):
            refused()
