"""W&B's settings: the mode that is asked for, and what it does not take."""

import json

import pytest

from tests.tracking.offline import KEY
from tometune.common.errors import UserError
from tometune.config.tracking import TrackingConfig, TrackingMode
from tometune.tracking import check_tracker


def test_wandb_mode_is_respected(track, folder):
    said = json.loads(track(env={"WANDB_MODE": "disabled", "WANDB_API_KEY": KEY}).stdout)
    assert said["tracking"]["mode"] == "disabled"
    assert list(folder.glob("wandb/*run-*")) == []


def test_what_wandb_does_not_take_is_one_line(track):
    done = track(tags=["x" * 65])
    assert done.stderr.startswith("UserError tracking: W&B rejects this: ")
    assert len(done.stderr.splitlines()) == 1
    assert "Traceback" not in done.stderr
    done = track(project="a/b")
    assert done.stderr.startswith("UserError tracking: W&B rejects this: ")


@pytest.mark.parametrize(
    ("config", "line"),
    [
        (TrackingConfig(mode=TrackingMode.online), "tracking.mode: online is not possible (no API key"),
        (TrackingConfig(tags=["x" * 65]), "tracking: W&B rejects this: "),
        (TrackingConfig(project="a/b"), "tracking: W&B rejects this: "),
    ],
)
def test_check_finds_it_before_anything_is_written(config, line, clean_env, monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", clean_env["HOME"])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as raised:
        check_tracker(config)
    assert str(raised.value).startswith(line)
    assert "\n" not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def test_check_takes_the_default():
    check_tracker(TrackingConfig())
