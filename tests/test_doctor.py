"""`tometune doctor`: one screen about the machine, without a token in it, and commands that exist."""

from types import SimpleNamespace

import httpx
import pytest
import torch

from tests.config.conftest import wrong_words
from tests.conftest import SECRETS
from tometune import doctor
from tometune.config.root import Config
from tometune.models import machine


@pytest.mark.parametrize(
    ("machine", "first", "last"),
    [
        ((None, 0, True, True), "tometune train +experiment=quickstart", "+experiment=quickstart"),
        (((8, 9), 24, False, True), "tometune train +experiment=quickstart", "+experiment=quickstart"),
        (((8, 9), 23.6, True, False), "bash scripts/setup.sh unsloth", "data=mix_100k trainer=rtx24gb"),
        (((7, 5), 14.6, True, True), "tometune train data=mix_100k trainer=t4 plan=true", "trainer=t4"),
        (((8, 6), 15.6, True, True), "tometune train data=mix_100k trainer=t4 plan=true", "trainer=t4"),
        (((8, 6), 47.5, True, True), "tometune train data=mix_100k plan=true", "data=mix_100k"),
        (((9, 0), 139.8, True, True), "tometune train data=mix_100k trainer=h200 plan=true", "trainer=h200"),
        (((9, 0), 79.6, True, False), "bash scripts/setup.sh gpu", "trainer=h200"),
    ],
)
def test_the_command_fits_the_machine(machine, first, last):
    commands = doctor.next_commands(*machine)
    assert commands[0] == first
    assert commands[-1].endswith(last)
    words = [word for command in commands if command.startswith("tometune") for word in command.split()[2:]]
    assert [problem for word in words for problem in wrong_words(word)] == []


def test_one_screen_without_a_token(monkeypatch, capsys, tmp_path):
    """On a made-up GPU, without a hub; W&B has a key."""
    for name, value in {**SECRETS, "HF_ENDPOINT": "http://127.0.0.1:9"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    gpu = SimpleNamespace(total_memory=24 * 2**30, major=8, minor=9)
    for name, value in {"is_available": True, "get_device_properties": gpu, "device_count": 2}.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, found=value: found)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA GeForce RTX 4090")
    monkeypatch.setattr(machine, "gpu_capability", lambda: (8, 9))
    machine.auto_precision.cache_clear()
    config = Config()
    config.paths.outputs, config.paths.cache = str(tmp_path / "none"), str(tmp_path)
    doctor.main.__wrapped__(config)
    machine.auto_precision.cache_clear()
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert len(out.splitlines()) <= 24, "one screen"
    text = " ".join(out.split())
    assert "GPU 2 of NVIDIA GeForce RTX 4090, 24 GiB, compute capability 8.9; computes in bf16" in text
    assert "hub http://127.0.0.1:9 cannot be reached within 3 s" in text
    assert "hub token present tracking W&B online" in text
    assert not [secret for secret in SECRETS.values() if secret[:12] in out]
    assert out.endswith("next:\n  tometune train +experiment=quickstart\n")


@pytest.mark.parametrize(
    ("offline", "status", "problem"),
    [
        (False, 200, "None"),
        (False, 502, "answered with status 502"),
        (True, None, "only models in the hub's cache and data that prepare has cached can be used"),
    ],
)
def test_only_a_hub_that_works_can_be_reached(monkeypatch, offline, status, problem):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    hub = httpx.Client(transport=httpx.MockTransport(lambda _: httpx.Response(status)))
    monkeypatch.setattr("huggingface_hub.get_session", None if offline else lambda: hub)
    assert str(doctor.hub_problem()).endswith(problem)
