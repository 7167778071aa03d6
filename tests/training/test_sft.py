"""The training loop over the real TRL and PEFT, on the tiny model."""

import dataclasses
import json
import math
from operator import attrgetter
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.data.conftest import write_jsonl
from tests.training import conftest
from tests.training.conftest import Fitted, settings
from tometune.common.errors import UserError
from tometune.config.eval import EvalConfig, TaskConfig
from tometune.config.model import Precision
from tometune.data.encoder import Encoder
from tometune.data.template import Template
from tometune.evaluation.generation import encode
from tometune.evaluation.likelihood import bits_per_byte
from tometune.evaluation.scoring import Scorer
from tometune.evaluation.tasks import load_tasks
from tometune.models.load import add_adapter, load_tuned
from tometune.models.source import locate
from tometune.training.trainer import MeteredTrainer


def weights(fitted: Fitted) -> dict[str, torch.Tensor]:
    return load_file(fitted.folder / "adapter" / "adapter_model.safetensors")


def test_equal_seeds_give_equal_bytes_and_another_seed_others(plain, train, tmp_path):
    again, other = (train(tmp_path / str(seed), settings(seed)) for seed in (0, 1))
    for made in ("adapter", "losses", "mix.row_ids"):
        a, b, c = (attrgetter(made)(fitted) for fitted in (plain, again, other))
        assert a == b != c, made


def test_each_seed_changes_its_own_part(plain, train, tmp_path):
    def with_seed(name: str) -> Fitted:
        config = settings()
        config.seeds = dataclasses.replace(config.seeds, **{name: 5})
        return train(tmp_path / name, config)

    order, adapter, data = (with_seed(name) for name in ("order", "adapter", "data"))
    assert order.mix.row_ids == adapter.mix.row_ids == plain.mix.row_ids
    assert data.mix.row_ids[:8] == plain.mix.row_ids[:8], "the base is in every mix"
    assert set(data.mix.row_ids[8:]) != set(plain.mix.row_ids[8:])
    assert torch.equal(adapter.batches[0]["input_ids"], plain.batches[0]["input_ids"])
    assert not torch.equal(order.batches[0]["input_ids"], plain.batches[0]["input_ids"])
    assert len({fitted.adapter for fitted in (plain, order, adapter, data)}) == 4


def test_a_trained_model_in_16_bits_scores_as_its_saved_adapter_does(train, cache, tmp_path):
    """So that a run that was killed after its training has the same scores."""
    config = settings()
    config.model.precision = Precision.bf16
    fitted = train(tmp_path, config)
    tokenizer, trained = fitted.trainer.processing_class, fitted.trainer.model.eval()
    loaded = load_tuned(None, locate(config.model, cache), config.lora, fitted.folder)
    encoder = Encoder(Template(tokenizer))
    prompts = encode(encoder, [[{"role": "user", "content": f"q {n}"}] for n in range(6)], 256)
    scores = [
        bits_per_byte(model, tokenizer, prompts, [["return the value of a lazy dog"]] * 6)
        for model in (trained, loaded)
    ]
    assert scores[0] == scores[1]


def test_the_adapter_stays_float32_over_a_4_bit_base(plain, train, tmp_path, monkeypatch):
    def marked(*arguments: Any, **keywords: Any) -> Any:
        made = add_adapter(*arguments, **keywords)
        made.is_loaded_in_4bit = True  # TRL checks only this before it makes the adapter bfloat16
        return made

    monkeypatch.setattr(conftest, "add_adapter", marked)
    monkeypatch.setattr("transformers.trainer.validate_quantization_for_training", lambda _: None)
    fitted = train(tmp_path / "marked", settings())
    assert {weight.dtype for weight in weights(fitted).values()} == {torch.float32}
    assert fitted.adapter == plain.adapter


def test_an_epoch_uses_every_row_once(train, tmp_path):
    fitted = train(tmp_path, settings(max_steps=None, conversations_per_step=3))
    batches = ((batch["input_ids"], batch["attention_mask"].bool()) for batch in fitted.batches)
    seen = [row[mask].tolist() for ids, masks in batches for row, mask in zip(ids, masks, strict=True)]
    assert sorted(seen) == sorted(fitted.tokens.dataset["input_ids"])
    assert (fitted.result.steps, fitted.result.epochs) == (math.ceil(20 / 3), 1.0)
    assert fitted.result.tokens == fitted.tokens.counts.tokens
    assert fitted.result.trained_tokens == fitted.tokens.counts.trainable_tokens


def test_accumulation_is_the_same_as_a_larger_batch(train, tmp_path):
    """Rows of very different lengths: a mean of means over the parts would differ by far more than the tolerance."""
    whole, parts = (
        train(tmp_path / str(size), settings(conversations_per_step=4, micro_batch=size, max_steps=3))
        for size in (4, 1)
    )
    assert whole.result.effective_batch == parts.result.effective_batch == 4
    assert whole.result.tokens == parts.result.tokens
    for name in ("loss", "token_accuracy", "entropy", "epoch"):
        assert parts.column(name) == pytest.approx(whole.column(name), abs=1e-5), name
    assert parts.column("grad_norm") == pytest.approx(whole.column("grad_norm"), rel=1e-4)
    assert whole.result.epochs == parts.result.epochs == pytest.approx(3 * 4 / 20)


def test_first_and_last_step_are_logged_whatever_the_logging_steps(train, tmp_path):
    fitted = train(tmp_path / "fine", settings(logging_steps=4))
    assert fitted.column("step") == [1, 4, 6]
    assert fitted.result.final_loss == fitted.losses[-1]
    config = settings(logging_steps=100, learning_rate=1e30, lr_scheduler_type="constant", max_grad_norm=0, optim="sgd")
    with pytest.raises(UserError, match=r"trainer\.learning_rate: the loss became"):
        train(tmp_path / "diverged", config)
    assert not (tmp_path / "diverged" / "adapter").exists()


def test_a_model_that_was_just_trained_answers_without_dropout(plain, tmp_path):
    """Dropout that is left on while scoring makes answers random, and only a tuned model's."""
    model = plain.trainer.model
    assert model.training, "as the trainer leaves it"
    modes: list[bool] = []
    hooks = [
        module.register_forward_pre_hook(lambda module, _: modes.append(module.training)) for module in model.modules()
    ]
    examples = [{"input": f"q {number}", "references": ["word"]} for number in range(3)]
    tasks = {"words": TaskConfig(path=str(write_jsonl(tmp_path / "words.jsonl", examples)), max_new_tokens=4)}
    evaluation = EvalConfig(tasks=tasks, batch_size=2, max_prompt_tokens=64)
    Scorer(plain.trainer.processing_class, load_tasks(evaluation), evaluation, tmp_path, tmp_path).stage("tuned", model)
    for hook in hooks:
        hook.remove()
    assert modes
    assert not any(modes)
    assert model.training, "its mode is restored"


def test_the_adapters_config_is_the_same_in_every_process(plain):
    """PEFT keeps the names of layers in a set, whose order depends on the process."""
    names = json.loads((plain.folder / "adapter" / "adapter_config.json").read_text())["target_modules"]
    assert names == sorted(names)
    assert len(names) == 7


def test_an_operation_without_a_deterministic_kernel_is_named_once_and_training_starts_again(
    train, plain, tmp_path, monkeypatch, caplog
):
    """Also if it comes in a later step, when the weights have changed and there is no checkpoint."""
    step, calls = MeteredTrainer.training_step, []

    def training_step(self: MeteredTrainer, *arguments: Any, **keywords: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("some_kernel does not have a deterministic implementation, but you set ...")
        return step(self, *arguments, **keywords)

    monkeypatch.setattr(MeteredTrainer, "training_step", training_step)
    fitted = train(tmp_path, settings(save_steps=100))
    assert len(calls) == 3 + 6
    assert caplog.text.count("some_kernel has no deterministic kernel") == 1
    assert (fitted.result.deterministic, fitted.result.nondeterministic) == (False, "some_kernel")
    assert (plain.result.deterministic, plain.result.nondeterministic) == (True, None)
    assert fitted.adapter == plain.adapter
    monkeypatch.setattr(MeteredTrainer, "training_step", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(tmp_path / "other", settings())
