"""The backend unsloth in its own process: on a CPU through Unsloth's CPU backend, which `setup.sh dev` installs."""

import json
import os
import signal
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from peft.tuners.lora.layer import Linear
from safetensors.torch import load_file

from tests.models.test_lora_rounding import inside, layer
from tests.whole import curve_of, record_of
from tometune.common.errors import UserError
from tometune.config.model import Backend, ModelConfig, Quantization
from tometune.models import machine, unsloth_backend
from tometune.models.lora_rounding import RoundedOnce

needed = pytest.mark.skipif(not machine.unsloth_installed(), reason="Unsloth is not installed")
STEPS = 20
RUN = (
    *("+experiment=smoke", "~eval.tasks.summarisation", "~eval.tasks.question_answering", "~eval.tasks.data_to_text"),
    *("eval.base=false", "eval.limit=1", "trainer.logging_steps=1"),
    *("trainer.conversations_per_step=4", "trainer.micro_batch=2", f"trainer.max_steps={STEPS}"),
    *("trainer.save_steps=5", "trainer.learning_rate=3e-3", "trainer.num_train_epochs=3"),
)
UNSLOTH = (*RUN, "model.backend=unsloth")
FULL = (
    *("lora=none", "trainer.learning_rate=1e-3", "trainer.packing=true", "trainer.conversations_per_step=null"),
    "trainer.tokens_per_step=512",
)


@needed
@pytest.mark.whole
@pytest.mark.parametrize(
    ("kind", "precision", "tolerance"),
    [
        ("lora", "bf16", 0.005),
        pytest.param("lora", "fp32", 1e-4, marks=pytest.mark.nightly),
        pytest.param("full", "bf16", 0.005, marks=pytest.mark.nightly),
        pytest.param("full", "fp32", 1e-4, marks=pytest.mark.nightly),
    ],
)
def test_both_backends_learn_the_same(place, kind, precision, tolerance):
    runs = []
    for backend in ("transformers", "unsloth"):
        where = f"{kind}-{backend}-{precision}"
        settings = (*RUN, *(FULL if kind == "full" else ()), f"model.precision={precision}")
        done = place.verb("train", *settings, f"model.backend={backend}", f"paths.outputs={where}")
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        runs.append(place.run_folder(where))
    plain, fast = runs
    assert [step for step, _ in curve_of(fast)] == list(range(1, STEPS + 1))
    assert curve_of(fast)[-1][1] < 0.995 * curve_of(fast)[0][1], "it learns"
    for (_, theirs), (_, ours) in zip(curve_of(plain), curve_of(fast), strict=True):
        assert ours == pytest.approx(theirs, rel=tolerance)
    mine, other = record_of(fast), record_of(plain)
    assert (mine["model"]["backend"], mine["train"]["kind"]) == ("unsloth", kind)
    assert mine["train"].keys() == other["train"].keys()
    for name in ("steps", "epochs", "effective_batch", "tokens", "trained_tokens", "trainable_parameters"):
        assert mine["train"][name] == other["train"][name], name
    assert mine["data"] == other["data"]
    assert not (place.folder / "unsloth_compiled_cache").exists()
    if kind == "lora":
        config = json.loads((fast / "adapter" / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == "tiny"
        return
    ours, theirs = (load_file(run / "model" / "model.safetensors") for run in (fast, plain))
    assert {name: weight.dtype for name, weight in ours.items()} == {name: w.dtype for name, w in theirs.items()}
    assert (fast / "model" / "config.json").read_text() == (plain / "model" / "config.json").read_text()


@needed
@pytest.mark.whole
@pytest.mark.nightly
def test_signals_reach_the_training_which_ends_with_its_parent(place):
    lasts = ("trainer.max_steps=2000", "trainer.num_train_epochs=999", "paths.outputs=signals")
    command = [sys.executable, "-m", "tometune.train", *UNSLOTH, *lasts]

    def stop(number: signal.Signals, steps: int) -> tuple[Path, int, str]:
        """Start the run, and send a signal when so many steps are logged; returns its folder, status and stderr."""
        pipes = {"stderr": subprocess.PIPE, "text": True}
        process = psutil.Popen(command, env=place.env, cwd=place.folder, **pipes)
        logs: list[Path] = []
        for _ in range(600):
            logs = list(place.folder.glob("signals/*/metrics.jsonl"))
            if logs and len(logs[0].read_text().splitlines()) >= steps:
                break
            time.sleep(0.1)
        children = process.children()
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
        assert psutil.wait_procs(children, timeout=10)[1] == [], "the training goes on without its parent"
        return logs[0].parent, process.returncode, stderr

    folder, status, stderr = stop(signal.SIGTERM, 7)
    assert status == 143, stderr
    step = int(stderr.partition("checkpoint saved at step ")[2].split()[0])
    assert (folder / "checkpoints" / f"checkpoint-{step}" / "trainer_state.json").exists()
    assert record_of(folder)["status"] == "running"
    *_, stderr = stop(signal.SIGINT, step + 3)
    assert stderr.splitlines()[-1] == "interrupted; run the same command again to resume"
    stop(signal.SIGKILL, step + 8)
    assert [number for number, _ in curve_of(folder)][: step + 3] == list(range(1, step + 4))


@needed
@pytest.mark.whole
@pytest.mark.nightly
def test_an_error_in_the_training_is_one_line(place):
    done = place.verb("train", *UNSLOTH, "trainer.learning_rate=1e30")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("trainer.learning_rate: the loss became")
    assert record_of(place.run_folder())["status"] == "failed"


def test_a_missing_package_and_versions_that_do_not_match_are_named(monkeypatch):
    model = ModelConfig(id="x", backend=Backend.unsloth, quantization=Quantization.none)
    monkeypatch.setattr(machine.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r'needs unsloth; run: pip install "tometune\[unsloth\]"'):
        machine.check_machine(model)
    monkeypatch.setattr(machine.util, "find_spec", lambda _: object())
    versions = {"unsloth": "2026.10.9", "unsloth_zoo": "2025.1.1"}
    monkeypatch.setattr(metadata, "version", versions.__getitem__)
    with pytest.raises(UserError, match=r"unsloth 2026\.10\.9 and unsloth_zoo 2025\.1\.1 do not match"):
        machine.check_machine(model)


@pytest.mark.parametrize("version", ["without kernels", "this", "another", "forced"])
def test_16_bit_layers_round_once_where_the_fused_kernels_can_be_taken_out(version, monkeypatch, caplog):
    model = layer(torch.bfloat16)
    declined: list[object] = []
    if version != "without kernels":
        known = {"_decline_fused_lora_for_fsdp": lambda of, reason: declined.append(of)} if version != "another" else {}
        monkeypatch.setitem(sys.modules, "unsloth.models.llama", SimpleNamespace(**known))  # type: ignore[misc]
    if version == "forced":
        monkeypatch.setenv("UNSLOTH_FORCE_FUSED_LORA", "1")
    unsloth_backend._sum_as_transformers(model)
    assert declined == ([model] if version == "this" else [])
    stays = version in ("another", "forced")
    assert type(inside(model)) is (Linear if stays else RoundedOnce)
    assert ("its fused kernels remain" in caplog.text) == stays


def test_telemetry_is_off(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "unsloth", SimpleNamespace())  # type: ignore[misc]
    monkeypatch.setattr(unsloth_backend, "_add_enable_gqa", lambda: None)
    monkeypatch.setattr(os, "environ", {})
    unsloth_backend.prepare(tmp_path)
    assert os.environ["UNSLOTH_DISABLE_STATISTICS"] == "1"
