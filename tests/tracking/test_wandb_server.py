"""W&B online: with a server, without one, and with one that refuses or goes away."""

import json
import socket

import pytest

from tests.tracking.offline import DOWN, ID, KEY, WANDB, the_folder
from tests.tracking.server import WandbServer


def test_an_unreachable_server_means_offline(track, folder):
    done = track(env={"WANDB_API_KEY": KEY, **DOWN})
    said = json.loads(done.stdout)
    assert said["tracking"]["mode"] == "offline"
    assert said["seconds"] < 10
    assert "WARNING W&B is offline (http://127.0.0.1:9 did not accept the run within 2 s" in done.stderr
    assert f"{WANDB} sync {the_folder(folder)}" in done.stderr
    assert list(folder.glob("wandb/run-*")) == []


def test_a_silent_server_means_offline(track):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        done = track(env={"WANDB_API_KEY": KEY, **DOWN, "WANDB_BASE_URL": url})
    said = json.loads(done.stdout)
    assert said["tracking"]["mode"] == "offline"
    assert said["seconds"] < 10


@pytest.mark.parametrize("env", [{}, {"WANDB_MODE": "offline"}])
def test_online_with_an_unreachable_server_is_an_error(track, folder, env):
    done = track(mode="online", env={"WANDB_API_KEY": KEY, **DOWN, **env})
    assert done.returncode != 0
    assert done.stderr.startswith("UserError tracking.mode: online is not possible (http://127.0.0.1:9 did not accept")
    assert len(done.stderr.splitlines()) == 1
    assert list(folder.glob("wandb/*run-*")) == []


def test_a_key_that_the_server_refuses_means_offline(track):
    with WandbServer(status=401) as server:
        done = track(env={"WANDB_API_KEY": KEY, "WANDB_BASE_URL": server.url})
    said = json.loads(done.stdout)
    assert said["tracking"]["mode"] == "offline"
    assert "401" in said["tracking"]["reason"]
    assert said["seconds"] < 10


def test_online_with_a_key(track, folder):
    with WandbServer() as server:
        done = track(env={"WANDB_API_KEY": KEY, "WANDB_BASE_URL": server.url}, results=False)
    assert (done.returncode, done.stderr) == (0, "")
    said = json.loads(done.stdout)
    assert said["tracking"] == {
        "tracker": "wandb",
        "mode": "online",
        "reason": None,
        "path": f"me/tometune/{ID}",
        "url": f"{server.url}/me/tometune/runs/{ID}",
        "folders": [],
        "sync": None,
    }
    assert set(server.queries) == {"RunResumeStatus", "UpsertBucket", "CreateRunFiles"}
    assert server.queries["RunResumeStatus"] == {"project": "tometune", "entity": None, "name": ID}
    sent = server.bodies[f"/files/me/tometune/{ID}/file_stream"]
    assert sent.count('\\"train/loss\\":0.5') == 1
    everything = json.dumps([server.queries, server.bodies])
    assert KEY not in everything
    assert socket.gethostname() not in everything
    assert str(folder) not in everything
    assert [path for path in folder.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()] == []


def test_a_server_that_goes_away_does_not_hold_the_run_up(track):
    with WandbServer() as server:
        env = {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": server.url, "WANDB_FINISH_TIMEOUT": "1"}
        server.leave_after = "UpsertBucket"
        done = track(env=env, results=False)
    assert done.returncode == 0, done.stderr
    assert "WARNING wandb: " in done.stderr
    assert f"to upload what was logged: {WANDB} sync " in done.stderr


@pytest.mark.parametrize(("choice", "env"), [({"mode": "online"}, {}), ({}, {"WANDB_MODE": "online"})])
def test_online_without_a_key_is_an_error(track, choice, env):
    done = track(env=env, **choice)
    assert done.stderr == (
        f"UserError tracking.mode: online is not possible (no API key (`{WANDB} login` stores one)); "
        "set tracking.mode=offline, or tracking=none\n"
    )


def test_a_malformed_key_means_offline(track):
    done = track(env={"WANDB_API_KEY": "short"})
    said = json.loads(done.stdout)
    assert said["tracking"]["reason"] == "WANDB_API_KEY invalid: API key must have 40+ characters, has 5"
