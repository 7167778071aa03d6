"""The micro-batch that fits, on a GPU whose memory is a formula; and a GPU that runs out of memory while training."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, Trainer

from tests.training.conftest import MOST, Fitted, settings
from tests.training.test_full import full, saved
from tometune.common.errors import UserError
from tometune.config.model import Compute, LoraConfig, ModelConfig, Quantization
from tometune.models.load import add_adapter, load_model
from tometune.models.source import ModelSource, locate
from tometune.training import memory
from tometune.training.batches import Training, TrainingInputs
from tometune.training.memory import MicroBatch, estimate, largest_that_fits
from tometune.training.sft import build_trainer
from tometune.training.steps import Step
from tometune.training.trainer import MeteredTrainer


def gpu(has: int) -> Callable[[int, bool], int]:
    def attempt(rows: int, checkpointing: bool) -> int:
        peak = 10 + rows * (2 if checkpointing else 10)
        if peak > has:
            raise torch.OutOfMemoryError
        return peak

    return attempt


@pytest.mark.parametrize(
    ("has", "checkpointing", "expected"),
    [
        (90, "auto", MicroBatch(8, False, 90)),
        (89, "auto", MicroBatch(4, False, 50)),
        (20, "auto", MicroBatch(1, False, 20)),
        (19, "auto", MicroBatch(4, True, 18)),
        (200, True, MicroBatch(8, True, 26)),
        (12, "auto", MicroBatch(1, True, 12)),
    ],
)
def test_the_largest_that_fits_is_found(monkeypatch, has, checkpointing, expected):
    monkeypatch.setattr(memory, "free_memory", lambda: None)  # slow
    trainer = settings(gradient_checkpointing=checkpointing).trainer
    assert largest_that_fits(gpu(has), [8, 4, 2, 1], trainer) == expected


@pytest.mark.parametrize(("sizes", "checkpointing"), [([4], False), ([1], "auto")])
def test_if_nothing_fits_the_line_names_the_settings(sizes, checkpointing):
    with pytest.raises(UserError, match=r"^trainer\.max_length: the model and \d rows? of this length") as error:
        largest_that_fits(gpu(5), sizes, settings(gradient_checkpointing=checkpointing).trainer)
    assert ("trainer.micro_batch=auto" in str(error.value)) == (sizes == [4])
    assert ("trainer.gradient_checkpointing=auto" in str(error.value)) == (checkpointing is False)


@pytest.fixture
def small_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1_000_000, 1_000_000))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 500_000)


@pytest.fixture
def inputs(plain: Fitted, cache: Path, tmp_path: Path) -> TrainingInputs:
    config = settings(conversations_per_step=4)
    source = locate(config.model, cache)
    return TrainingInputs(source, plain.tokens, config.trainer, config.lora, config.seeds, tmp_path, cache)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_an_attempt_is_a_pass_over_full_rows_and_leaves_no_trace(plain, inputs, small_gpu, checkpointing):
    model = add_adapter(load_model(inputs.source), inputs.lora, 0)
    training = Training(model, plain.trainer.processing_class, inputs, lambda *_: None)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    passes: list[dict[str, Any]] = []
    model.register_forward_pre_hook(lambda _, __, given: passes.append(given), with_kwargs=True)

    def build(step: Step, again: bool) -> MeteredTrainer:
        assert (step, again) == (Step(4, 2), checkpointing)
        return build_trainer(training, step, again)

    assert memory._attempt(build, training, 2, checkpointing) == 500_000 - 80_000
    (given,) = passes
    assert given["input_ids"].shape == (2, MOST)
    assert all(weight.grad is None for weight in model.parameters())
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_a_micro_batch_is_remembered_per_kind(tmp_path, monkeypatch, small_gpu):
    attempts: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(memory, "_key", lambda training: {"kind": training.kind})
    monkeypatch.setattr(memory, "_attempt", lambda _, training, *__: attempts.append(training.kind) or 50)
    inputs = SimpleNamespace(trainer=settings().trainer, cache=tmp_path)
    found = [memory.choose(None, SimpleNamespace(kind=kind, inputs=inputs)) for kind in "aba"]  # type: ignore[arg-type]
    assert found == [MicroBatch(2, False, 50)] * 3
    assert attempts == ["a", "b"]


def test_a_model_in_fp8_and_a_copy_in_another_process_are_other_kinds(inputs, monkeypatch):
    """That process scores, and keeps its model while Unsloth's process trains, if the model is small."""
    gpu = SimpleNamespace(name="made up", total_memory=10**9)
    cuda = {"is_available": True, "current_device": 0, "get_device_properties": gpu, "mem_get_info": (10**9, 10**9)}
    for name, value in cuda.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, found=value: found)
    found, model = {}, SimpleNamespace(get_memory_footprint=lambda: size)
    for unsloth, size in ((False, 1), (True, 1), (True, 10**8)):
        training = SimpleNamespace(
            inputs=inputs, model=model, unsloth=unsloth, dtype="bf16", attention="sdpa", cuda_graph=False
        )
        found[unsloth, size] = memory._key(training)  # type: ignore[arg-type]
    assert found[False, 1] == found[True, 10**8] != found[True, 1]
    keys = []
    for compute in Compute:
        fp8 = replace(inputs.source.config, compute=compute)
        training.inputs = replace(inputs, source=replace(inputs.source, config=fp8))
        keys.append(str(memory._key(training)))  # type: ignore[arg-type]
    assert keys[0] == str(found[True, 10**8])
    assert len(set(keys)) == 3


NIGHTLY = [pytest.param(*case, marks=pytest.mark.nightly) for case in (("lora", 2), ("full", 2), ("full", 4))]


@pytest.mark.parametrize(("kind", "failing_step"), [("lora", 4), *NIGHTLY])
def test_out_of_memory_continues_at_half_the_micro_batch(train, tmp_path, monkeypatch, caplog, kind, failing_step):
    """Both before the first checkpoint, where weights have changed already, and after one."""
    config = full if kind == "full" else settings
    unbroken = train(tmp_path / "unbroken", config(conversations_per_step=4, micro_batch=2))
    step, calls = Trainer.training_step, iter(range(1, 100))

    def out_of_memory(self: Any, model: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
        if len(inputs["input_ids"]) == 4 and next(calls) == failing_step:
            raise torch.OutOfMemoryError
        return step(self, model, inputs, *rest, **named)

    monkeypatch.setattr(Trainer, "training_step", out_of_memory)
    fitted = train(tmp_path / "broken", config(conversations_per_step=4, micro_batch=4))
    assert (fitted.result.micro_batch, fitted.result.effective_batch, fitted.result.steps) == (2, 4, 6)
    assert "out of memory; continuing with trainer.micro_batch=2, steps stay the same" in caplog.text
    assert fitted.losses == pytest.approx(unbroken.losses, abs=1e-5)
    if kind == "full" and failing_step == 2:
        assert all(torch.allclose(weight, saved(unbroken)[name], atol=1e-4) for name, weight in saved(fitted).items())


def test_out_of_memory_with_one_row_is_one_line(train, tmp_path, monkeypatch):
    def out_of_memory(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Trainer, "training_step", out_of_memory)
    with pytest.raises(UserError, match=r"^trainer\.micro_batch=1: the GPU ran out of memory while training; set"):
        train(tmp_path, settings(conversations_per_step=2, micro_batch=2, gradient_checkpointing=False))


def test_the_estimate_for_a_plan_needs_no_weights(tmp_path):
    shape = {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24}
    LlamaConfig(**shape, num_key_value_heads=8, vocab_size=128256, tie_word_embeddings=True).save_pretrained(tmp_path)
    source = ModelSource(ModelConfig(id=str(tmp_path), quantization=Quantization.none), str(tmp_path), None)
    eight = settings(
        max_length=8 * 2048, packing=True, conversations_per_step=None, gradient_checkpointing="auto"
    ).trainer
    measured = 58.3e9  # Llama-3.2-3B on an H200, 8 packs of 2,048 tokens per pass (docs/LOG.md)
    assert estimate(source, eight, LoraConfig()) == pytest.approx(measured, rel=0.33)
    assert estimate(source, eight, LoraConfig(enabled=False)) > 20 * 3.2e9
    for compute, size in ((Compute.fp8, 5.6e9), (Compute.fp8_backward, 2.8e9)):
        fp8 = replace(source, config=replace(source.config, compute=compute))
        more = estimate(fp8, eight, LoraConfig()) - estimate(source, eight, LoraConfig())
        assert more == pytest.approx(size, rel=0.01)
