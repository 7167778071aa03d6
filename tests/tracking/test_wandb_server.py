"""W&B online: with a server, without one, and with one that rejects the key or goes away; and without a key."""

import json
import socket

import pytest

from tests.tracking.offline import DOWN, ID, KEY, WANDB, the_folder
from tests.tracking.server import WandbServer
from tometune.common.errors import UserError
from tometune.config.tracking import TrackingConfig, TrackingMode
from tometune.tracking import check_tracker


@pytest.fixture(params=["down", pytest.param("silent", marks=pytest.mark.nightly), "rejecting"])
def bad_server(request):
    """The environment of a server that does not answer or rejects the key, and the reason that a run gives."""
    timeout = "did not accept the run within 2 s"
    if request.param == "down":
        yield DOWN, timeout
    elif request.param == "silent":
        with socket.create_server(("127.0.0.1", 0)) as silent:
            yield {**DOWN, "WANDB_BASE_URL": f"http://127.0.0.1:{silent.getsockname()[1]}"}, timeout
    else:
        with WandbServer(status=401) as server:
            yield {"WANDB_BASE_URL": server.url}, "401"


def test_a_bad_server_means_offline(bad_server, track, folder, tmp_path):
    env, reason = bad_server
    done = track(env={"WANDB_API_KEY": KEY, **env})
    printed = json.loads(done.stdout)
    assert printed["tracking"]["mode"] == "offline"
    assert reason in printed["tracking"]["reason"]
    assert printed["seconds"] < 10
    assert f"WARNING W&B is offline ({env['WANDB_BASE_URL']}" in done.stderr
    assert f"{WANDB} sync {the_folder(folder)}" in done.stderr
    assert list(folder.glob("wandb/run-*")) == []
    assert [path for path in tmp_path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()] == []
    assert KEY not in done.stdout + done.stderr


def test_online_with_an_unreachable_server_is_an_error(track, folder):
    done = track(mode="online", env={"WANDB_API_KEY": KEY, **DOWN, "WANDB_MODE": "offline"})
    assert done.returncode != 0
    [line] = done.stderr.splitlines()
    assert line.startswith("UserError tracking.mode: online is not possible (http://127.0.0.1:9 did not accept")
    assert list(folder.glob("wandb/*run-*-*")) == []


def test_online_with_a_key(track, folder):
    with WandbServer() as server:
        done = track(env={"WANDB_API_KEY": KEY, "WANDB_BASE_URL": server.url}, results=False)
    assert (done.returncode, done.stderr) == (0, "")
    described = json.loads(done.stdout)["tracking"]
    assert (described["mode"], described["path"]) == ("online", f"me/tometune/{ID}")
    assert described["url"] == f"{server.url}/me/tometune/runs/{ID}"
    assert (described["reason"], described["folders"], described["sync"]) == (None, [], None)
    assert set(server.queries) == {"RunResumeStatus", "UpsertBucket", "CreateRunFiles"}
    sent = server.bodies[f"/files/me/tometune/{ID}/file_stream"]
    assert sent.count('\\"train/loss\\":0.5') == 1
    everything = json.dumps([server.queries, server.bodies])
    assert not [secret for secret in (KEY, socket.gethostname(), str(folder)) if secret in everything]


def test_a_server_that_goes_away_does_not_delay_the_run(track):
    with WandbServer() as server:
        env = {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": server.url, "WANDB_FINISH_TIMEOUT": "1"}
        server.leave_after = "UpsertBucket"
        done = track(env=env, results=False)
    assert done.returncode == 0, done.stderr
    assert "WARNING wandb: " in done.stderr
    assert f"to upload what was logged: {WANDB} sync " in done.stderr


@pytest.fixture
def own_home(clean_env, monkeypatch, tmp_path):
    """An empty home and no settings of W&B in this process."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", clean_env["HOME"])
    monkeypatch.chdir(tmp_path)


NO_KEY = f"tracking.mode: online is not possible (no API key (`{WANDB} login` stores one)); set tracking.mode=offline"


@pytest.mark.parametrize(
    ("config", "mode", "line"),
    [
        ({"mode": TrackingMode.online}, None, NO_KEY),
        ({}, "online", NO_KEY),
        ({"tags": ["x" * 65]}, None, "tracking: W&B rejects this: "),
        ({"project": "a/b"}, None, "tracking: W&B rejects this: "),
    ],
)
def test_check_stops_before_anything_is_written(config, mode, line, own_home, monkeypatch, tmp_path):
    if mode:
        monkeypatch.setenv("WANDB_MODE", mode)
    with pytest.raises(UserError) as raised:
        check_tracker(TrackingConfig(**config))
    assert str(raised.value).startswith(line)
    assert "\n" not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


@pytest.mark.parametrize(
    ("env", "mode", "reason"),
    [
        ({"WANDB_MODE": "disabled", "WANDB_API_KEY": KEY}, "disabled", None),
        ({"WANDB_MODE": "offline", "WANDB_API_KEY": KEY}, "offline", None),
        ({"WANDB_API_KEY": "short"}, "offline", "WANDB_API_KEY invalid: API key must have 40+ characters, has 5"),
    ],
)
def test_the_mode_is_that_of_the_environment(env, mode, reason, own_home, monkeypatch):
    from tometune.tracking import wandb_tracker

    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert wandb_tracker.choose_mode(TrackingMode.auto) == (mode, reason)
    wandb_tracker.wandb.teardown()
