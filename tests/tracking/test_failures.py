"""Nothing that breaks in a tracker fails the run that it tracks; it costs one warning."""

import logging

import pytest

from tests.tracking.test_tracker import write_predictions
from tometune import tracking
from tometune.common.errors import UserError
from tometune.config.tracking import Tracker, TrackingConfig
from tometune.tracking import RunLabels, check_tracker, start_tracker
from tometune.tracking.tracker import RunTracker

METHODS = ("log", "summary", "table", "page", "artifact", "finish", "describe")


def broken(method, error):
    """A tracker in which one method raises."""

    def fail(self, *arguments, **options):
        self.calls += 1
        raise error

    fail.__name__ = method
    return type("Broken", (RunTracker,), {"calls": 0, "CONNECTION_ERRORS": (ConnectionError,), method: fail})


@pytest.fixture
def labels(tmp_path):
    return RunLabels("run", "train", "g", tmp_path / "run", {})


def track(tracker, folder):
    """Use every method, as a training does."""
    (folder / "adapter").mkdir(parents=True)
    (folder / "mix.json").write_text("{}")
    write_predictions(folder, "base", "qa", 2)
    record = {"data": {"rows": 3}, "train": {"steps": 2}, "eval": {"base": {"rouge1": 0.5}}, "model": {"name": "tiny"}}
    with tracker:
        for step in range(3):
            tracker.log({"train/loss": 1.0}, step)
        tracker.results(record, folder)
        tracker.page("report", "<p>")
    return tracker.describe()


@pytest.mark.parametrize("method", METHODS)
def test_a_method_that_raises_is_one_warning(method, labels, caplog):
    made = broken(method, ValueError("no\nmore"))(TrackingConfig(), labels)
    described = track(made, labels.folder)
    assert made.calls > 0
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == [
        f"wandb: {method} failed (no more); the run continues"
    ]
    assert described == ({"tracker": "wandb"} if method == "describe" else {"tracker": "none"})


def test_a_lost_connection_is_not_tried_again(labels):
    lost = broken("log", ConnectionError())(TrackingConfig(), labels)
    track(lost, labels.folder)
    assert lost.calls == 1


def test_broken_predictions_are_a_warning(labels, caplog):
    path = labels.folder / "eval" / "base" / "qa.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("{broken")
    RunTracker(TrackingConfig(tracker=Tracker.none), labels).results({"model": {}}, labels.folder)
    assert "none: results failed" in caplog.text


def test_a_tracker_that_does_not_start_is_a_warning(labels, caplog, monkeypatch):
    class Module:
        @staticmethod
        def check(config):
            raise OSError("disk full")

        TRACKER = check

    monkeypatch.setattr(tracking, "_module", lambda config: Module)
    check_tracker(TrackingConfig())
    Module.TRACKER = lambda config, labels: Module.check(config)
    assert start_tracker(TrackingConfig(), labels).describe() == {
        "tracker": "none",
        "reason": "wandb could not be started (disk full)",
    }
    assert "wandb could not be started (disk full); the run continues without a tracker" in caplog.text


def test_a_wrong_setting_still_stops_the_run(labels, monkeypatch):
    def refuse(config):
        raise UserError("tracking.tags: too long")

    monkeypatch.setattr(tracking, "_module", lambda config: type("Module", (), {"check": staticmethod(refuse)}))
    with pytest.raises(UserError):
        check_tracker(TrackingConfig())
