"""The loop over the real TRL and PEFT, on the tiny model."""

import dataclasses
import logging
import math
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from trl import SFTConfig
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from tests.data.conftest import files, write_jsonl
from tests.training import conftest
from tests.training.conftest import MOST, Fitted, Train, settings, talk
from tometune.config.data import DataConfig
from tometune.config.errors import UserError
from tometune.config.root import Config
from tometune.models.adapter import add_adapter
from tometune.stopping import Stopped
from tometune.training import sft
from tometune.training.sft import arguments


def weights(fitted: Fitted) -> dict[str, torch.Tensor]:
    return load_file(fitted.folder / "adapter" / "adapter_model.safetensors")


def test_seeds_1_1_2_give_adapters_samples_and_first_batches_a_a_b(train: Train, tmp_path: Path) -> None:
    one, again, other = (train(tmp_path / name, settings(seed)) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert one.adapter == again.adapter
    assert one.adapter != other.adapter
    assert one.mix.row_ids == again.mix.row_ids
    assert one.mix.row_ids[:8] == other.mix.row_ids[:8], "the base is in every mix"
    assert set(one.mix.row_ids[8:]) != set(other.mix.row_ids[8:])
    assert torch.equal(one.batches[0]["input_ids"], again.batches[0]["input_ids"])
    assert not torch.equal(one.batches[0]["input_ids"], other.batches[0]["input_ids"])
    assert [line["loss"] for line in one.curve] == [line["loss"] for line in again.curve]


def test_each_seed_moves_its_own_part(train: Train, tmp_path: Path) -> None:
    def with_seed(**seeds: int) -> Fitted:
        config = settings(max_steps=2)
        config.seeds = dataclasses.replace(config.seeds, **seeds)
        return train(tmp_path / "-".join(seeds or "0"), config)

    plain, order, adapter, data = with_seed(), with_seed(order=5), with_seed(adapter=5), with_seed(data=5)
    assert order.mix.row_ids == adapter.mix.row_ids == plain.mix.row_ids != data.mix.row_ids
    assert torch.equal(adapter.batches[0]["input_ids"], plain.batches[0]["input_ids"])
    assert not torch.equal(order.batches[0]["input_ids"], plain.batches[0]["input_ids"])
    assert len({fitted.adapter for fitted in (plain, order, adapter, data)}) == 4


def test_the_base_is_frozen_and_the_adapter_learns(train: Train, tmp_path: Path) -> None:
    fitted = train(tmp_path, settings(max_steps=40, save_steps=40, num_train_epochs=9))
    assert {name.rpartition(".lora_")[2][0] for name in weights(fitted)} == {"A", "B"}
    assert fitted.curve[-1]["loss"] < 0.9 * fitted.curve[0]["loss"]
    assert fitted.result.final_loss == fitted.curve[-1]["loss"]
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert not list(tmp_path.glob(".*"))


def test_the_adapter_stays_float32_over_a_4_bit_base(train: Train, tmp_path: Path, monkeypatch) -> None:
    def marked(*arguments: Any, **keywords: Any) -> Any:
        made = add_adapter(*arguments, **keywords)
        made.is_loaded_in_4bit = True  # all that TRL looks at before it makes the adapter bfloat16
        return made

    plain = train(tmp_path / "plain", settings())
    monkeypatch.setattr(conftest, "add_adapter", marked)
    monkeypatch.setattr("transformers.trainer.validate_quantization_for_training", lambda _: None)
    fitted = train(tmp_path / "marked", settings())
    assert {weight.dtype for weight in weights(fitted).values()} == {torch.float32}
    assert fitted.adapter == plain.adapter


def test_an_epoch_sees_every_row_once(train: Train, tmp_path: Path) -> None:
    fitted = train(tmp_path, settings(max_steps=None, per_device_train_batch_size=3))
    batches = ((batch["input_ids"], batch["attention_mask"].bool()) for batch in fitted.batches)
    seen = [row[mask].tolist() for ids, masks in batches for row, mask in zip(ids, masks, strict=True)]
    assert sorted(seen) == sorted(fitted.tokens.dataset["input_ids"])
    assert (fitted.result.steps, fitted.result.epochs) == (math.ceil(20 / 3), 1.0)
    assert fitted.result.tokens == fitted.tokens.counts.tokens
    assert fitted.result.trained_tokens == fitted.tokens.counts.trainable_tokens


def test_rows_without_labels_are_counted_and_not_trained_on(
    train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    long = {"conversations": [{"from": "human", "value": "long " * MOST}, {"from": "gpt", "value": "lost"}]}
    rows = [long if n % 5 == 0 else talk(n, 3) for n in range(20)]
    for number, row in enumerate(rows):
        row["conversations"][0]["value"] += str(number)
        rows[number] = {"conversations": [dict(turn) for turn in row["conversations"]]}
    with caplog.at_level(logging.INFO):
        data = DataConfig(name="long", rows=20, base=files(write_jsonl(tmp_path / "rows.jsonl", rows)))
        fitted = train(tmp_path / "run", settings(max_steps=None), data)
    assert (fitted.tokens.counts.rows, fitted.tokens.counts.without_labels) == (20, 4)
    assert "4 rows have nothing to train on after cutting and are left out" in caplog.text
    assert "training: 16 rows" in caplog.text
    assert fitted.result.steps == 8
    assert all((batch["labels"] != -100).any(dim=1).all() for batch in fitted.batches)


def test_accumulation_is_the_same_as_a_larger_batch(train: Train, tmp_path: Path) -> None:
    """Rows of very different lengths: a mean of means over the parts would differ by far more than the tolerance."""
    sizes = ((4, 1), (2, 2), (1, 4))
    whole, *parts = (
        train(
            tmp_path / str(size),
            settings(per_device_train_batch_size=size, gradient_accumulation_steps=count, max_steps=5),
        )
        for size, count in sizes
    )
    assert {fitted.result.effective_batch for fitted in (whole, *parts)} == {4}
    assert {fitted.result.tokens for fitted in parts} == {whole.result.tokens}
    for fitted in parts:
        for mine, theirs in zip(fitted.curve, whole.curve, strict=True):
            assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
            assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)


@dataclass
class UnslothsDefaults(SFTConfig):
    """The defaults that importing Unsloth leaves behind, and a few that would show."""

    seed: int = 3407
    data_seed: int | None = 3407
    learning_rate: float = 5e-5
    per_device_train_batch_size: int = 4
    gradient_accumulation_steps: int = 2
    warmup_steps: float = 0.1
    weight_decay: float = 0.5
    optim: str = "adamw_8bit"
    lr_scheduler_type: str = "cosine"
    max_grad_norm: float = 0.1
    adam_beta2: float = 0.9
    adam_epsilon: float = 1e-4
    num_train_epochs: float = 9
    logging_steps: float = 3
    logging_nan_inf_filter: bool = True
    save_steps: float = 9
    max_length: int | None = 11
    packing: bool = True
    padding_free: bool = True
    loss_type: str = "dft"
    neftune_noise_alpha: float | None = 5.0
    label_smoothing_factor: float = 0.1
    completion_only_loss: bool | None = True
    remove_unused_columns: bool | None = True
    dataloader_drop_last: bool = True
    gradient_checkpointing: bool = True
    use_liger_kernel: bool = True
    train_sampling_strategy: str = "sequential"
    average_tokens_across_devices: bool = False
    auto_find_batch_size: bool = True
    disable_tqdm: bool | None = False


def test_no_default_of_a_library_reaches_the_training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    names = set(UnslothsDefaults.__annotations__)
    ours = arguments(settings(), torch.float32, tmp_path)
    assert all(getattr(ours, name) != getattr(UnslothsDefaults, name) for name in names), "each would show"
    monkeypatch.setattr(sft, "Arguments", UnslothsDefaults)
    theirs = arguments(settings(), torch.float32, tmp_path)
    assert {name: getattr(theirs, name) for name in names} == {name: getattr(ours, name) for name in names}


@pytest.mark.parametrize(
    ("key", "value", "attribute"),
    [
        ("weight_decay", 0.5, "weight_decay"),
        ("max_grad_norm", 0.125, "max_grad_norm"),
        ("num_train_epochs", 3.5, "num_train_epochs"),
        ("per_device_train_batch_size", 7, "per_device_train_batch_size"),
        ("gradient_accumulation_steps", 3, "gradient_accumulation_steps"),
        ("gradient_checkpointing", True, "gradient_checkpointing"),
        ("max_length", 33, "max_length"),
        ("loss_type", "nll", "loss_type"),
        ("dataloader_num_workers", 2, "dataloader_num_workers"),
        ("logging_steps", 5, "logging_steps"),
        ("save_steps", 7, "save_steps"),
        ("save_total_limit", 5, "save_total_limit"),
    ],
)
def test_a_setting_is_an_argument_of_trl(key: str, value: Any, attribute: str, tmp_path: Path) -> None:
    given = arguments(settings(**{key: value}), torch.float32, tmp_path)
    assert getattr(given, attribute) == value


def test_max_steps_and_seeds_reach_trl(tmp_path: Path) -> None:
    config = settings()
    config.seeds = dataclasses.replace(config.seeds, order=5, adapter=6)
    given = arguments(config, torch.float32, tmp_path)
    assert (given.max_steps, given.data_seed, given.seed) == (6, 5, 6)
    assert arguments(settings(max_steps=None), torch.float32, tmp_path).max_steps == -1


@pytest.mark.parametrize(("dtype", "flags"), [("float32", (0, 0)), ("bfloat16", (1, 0)), ("float16", (0, 1))])
def test_the_arithmetic_follows_the_models_dtype(dtype: str, flags: tuple[int, int], tmp_path: Path) -> None:
    given = arguments(settings(), getattr(torch, dtype), tmp_path)
    assert (given.bf16, given.fp16) == flags


def test_rate_optimiser_and_schedule_are_those_of_the_config(train: Train, tmp_path: Path) -> None:
    linear = train(tmp_path / "linear", settings(weight_decay=0.25))
    optimiser = linear.trainer.optimizer.optimizer
    assert type(optimiser) is torch.optim.AdamW
    assert {group["weight_decay"] for group in optimiser.param_groups if group["params"]} == {0.25}
    rates = [line["learning_rate"] for line in linear.curve]
    assert rates == pytest.approx([0, 0.005, 0.01, 0.0075, 0.005, 0.0025])
    constant = settings(learning_rate=3e-3, lr_scheduler_type="constant", optim="sgd", warmup_steps=0)
    other = train(tmp_path / "constant", constant)
    assert type(other.trainer.optimizer.optimizer) is torch.optim.SGD
    assert [line["learning_rate"] for line in other.curve] == pytest.approx([3e-3] * 6)


def test_the_curve_begins_and_ends_with_the_training_whatever_the_logging_step(train: Train, tmp_path: Path) -> None:
    fitted = train(tmp_path, settings(logging_steps=4))
    assert [line["step"] for line in fitted.curve] == [1, 4, 6]
    assert fitted.result.final_loss == fitted.curve[-1]["loss"]


def test_a_loss_that_is_no_number_is_noticed_even_between_two_logs(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(logging_steps=100, learning_rate=1e30, lr_scheduler_type="constant", max_grad_norm=0, optim="sgd")
    with pytest.raises(UserError, match=r"trainer\.learning_rate: the loss became"):
        train(tmp_path, config)
    assert not (tmp_path / "adapter").exists()


# Packing


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("loss", ["chunked_nll", "nll"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_loss_of_a_packed_block_is_that_of_its_rows_alone(
    train: Train, tmp_path: Path, attention: str, loss: str, checkpointing: bool
) -> None:
    """Through the trainer itself, on the batch it trained on: what is compared is what training does."""
    config = settings(packing=True, max_length=256, max_steps=1, loss_type=loss, gradient_checkpointing=checkpointing)
    config.model.attn_implementation = attention
    fitted = train(tmp_path, config)
    (batch,) = fitted.batches
    assert set(batch) == {"input_ids", "labels", "position_ids"}
    starts = (batch["position_ids"][0] == 0).nonzero().flatten().tolist()
    assert len(starts) > 3
    sharpen(fitted)
    trained = (batch["labels"] != -100).sum()
    together = loss_of(fitted, batch, trained)
    rows = [slice(start, end) for start, end in zip(starts, [*starts[1:], None], strict=True)]
    alone = sum(loss_of(fitted, {name: batch[name][:, row] for name in batch}, trained) for row in rows)
    assert together == pytest.approx(alone, abs=1e-5)

    # The same block with one mask over all, as a collator that pads would make it: the comparison must notice.
    one_mask = {name: batch[name] for name in ("input_ids", "labels")}
    one_mask["attention_mask"] = torch.ones_like(batch["input_ids"])
    assert abs(loss_of(fitted, one_mask, trained) - alone) > 1e-3


def test_rows_that_are_not_packed_are_padded_and_masked(train: Train, tmp_path: Path) -> None:
    fitted = train(tmp_path, settings(max_steps=1, per_device_train_batch_size=4))
    (batch,) = fitted.batches
    lengths = batch["attention_mask"].sum(dim=1)
    assert lengths.min() < lengths.max()
    assert (batch["labels"][batch["attention_mask"] == 0] == -100).all()
    sharpen(fitted)
    trained = (batch["labels"] != -100).sum()
    rows = ({name: batch[name][row : row + 1, : int(lengths[row])] for name in batch} for row in range(4))
    alone = sum(loss_of(fitted, row, trained) for row in rows)
    assert loss_of(fitted, batch, trained) == pytest.approx(alone, abs=1e-5)


def test_packing_trains_on_the_same_tokens_in_fewer_steps(train: Train, tmp_path: Path) -> None:
    loose = train(tmp_path / "loose", settings(max_steps=None, max_length=160))
    packed = train(tmp_path / "packed", settings(max_steps=None, max_length=160, packing=True))
    assert packed.result.tokens == packed.result.padded_tokens == loose.result.tokens < loose.result.padded_tokens
    assert packed.result.trained_tokens == loose.result.trained_tokens
    assert packed.result.steps < loose.result.steps


def sharpen(fitted: Fitted) -> None:
    """Make the random weights large enough that who attends to whom shows in the loss."""
    with torch.no_grad():
        for name, weight in fitted.trainer.model.named_parameters():
            if "proj" in name and "lora" not in name:
                weight.mul_(6)


def loss_of(fitted: Fitted, batch: dict[str, torch.Tensor], trained: torch.Tensor) -> float:
    """Return the trainer's loss of a batch as a share of `trained` tokens."""
    with torch.no_grad():
        inputs = {name: value.clone() for name, value in batch.items()}
        return float(fitted.trainer.compute_loss(fitted.trainer.model, inputs, num_items_in_batch=trained))


# Being stopped


def stop_at(step: int, number: signal.Signals = signal.SIGTERM) -> sft.OnLog:
    """Return a listener that sends this process a signal when a step is logged."""

    def listen(_: dict[str, float], at: int) -> None:
        if at == step:
            os.kill(os.getpid(), number)

    return listen


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dropout": {},
    "packing": {"packing": True, "max_length": 96, "max_steps": 5, "num_train_epochs": 9},
    "dropout and packing": {"packing": True, "max_length": 96, "max_steps": 5, "num_train_epochs": 9},
    "accumulation": {"gradient_accumulation_steps": 3, "per_device_train_batch_size": 1},
    "checkpointing": {"gradient_checkpointing": True},
    "epochs": {"max_steps": None, "num_train_epochs": 2.0, "per_device_train_batch_size": 6},
    "workers": {"dataloader_num_workers": 1},
}


def variant(name: str) -> Config:
    config = settings(**VARIANTS[name])
    config.lora.lora_dropout = 0.1 if "dropout" in name else 0.0
    return config


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("step", [1, 3])
def test_stopped_and_resumed_is_bit_for_bit_unbroken(train: Train, tmp_path: Path, name: str, step: int) -> None:
    unbroken = train(tmp_path / "unbroken", variant(name))
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped) as stopped:
        train(tmp_path / "broken", variant(name), on_log=stop_at(step))
    assert stopped.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == handler
    saved = {path.name for path in (tmp_path / "broken" / "checkpoints").iterdir()}
    assert f"checkpoint-{step + 1}" in saved, "the step after the signal is finished and saved"
    assert not (tmp_path / "broken" / "adapter").exists()

    resumed = train(tmp_path / "broken", variant(name))
    assert resumed.adapter == unbroken.adapter
    assert [exact(line) for line in resumed.curve] == [exact(line) for line in unbroken.curve]
    assert counts(resumed) == counts(unbroken)
    assert len(resumed.batches) < len(unbroken.batches)


def exact(line: dict[str, float]) -> dict[str, float]:
    """Leave out what time and memory have a say in."""
    return {name: value for name, value in line.items() if not name.endswith(("_second", "_gb"))}


def counts(fitted: Fitted) -> tuple[object, ...]:
    result = fitted.result
    return (
        *(result.steps, result.epochs, result.tokens, result.padded_tokens, result.trained_tokens),
        *(result.effective_batch, result.final_loss),
    )


@pytest.mark.parametrize("length", [{"max_steps": 6}, {"max_steps": None, "num_train_epochs": 1.0}])
def test_broken_off_after_the_last_checkpoint_trains_no_step_more(
    train: Train, tmp_path: Path, length: dict[str, Any]
) -> None:
    whole = train(tmp_path, settings(**length))
    before, curve = whole.adapter, (tmp_path / "metrics.jsonl").read_bytes()
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    (tmp_path / ".adapter.99").mkdir()
    again = train(tmp_path, settings(**length))
    assert again.adapter == before
    assert again.batches == []
    assert counts(again) == counts(whole)
    assert (tmp_path / "metrics.jsonl").read_bytes() == curve
    assert not list(tmp_path.glob(".adapter.*"))


def test_a_checkpoint_whose_saving_was_broken_off_is_made_again(train: Train, tmp_path: Path) -> None:
    unbroken = train(tmp_path / "unbroken", settings())
    with pytest.raises(Stopped):
        train(tmp_path / "broken", settings(), on_log=stop_at(4))
    newest = tmp_path / "broken" / "checkpoints" / "checkpoint-5"
    text = (newest / "trainer_state.json").read_text()
    (newest / "trainer_state.json").write_text(text[: len(text) // 2])
    resumed = train(tmp_path / "broken", settings())
    assert len(resumed.batches) == 2, "it goes on from step 4"
    assert resumed.adapter == unbroken.adapter


def test_only_so_many_checkpoints_are_kept(train: Train, tmp_path: Path) -> None:
    train(tmp_path, settings(save_total_limit=2))
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["checkpoint-4", "checkpoint-6"]


def test_the_collator_packs_by_position_ids_only() -> None:
    collator = DataCollatorForLanguageModeling(0, padding_free=True)
    rows = [{"input_ids": [5, 6, 7, 8], "labels": [-100, 6, -100, 8], "seq_lengths": [2, 2]}]
    assert collator(rows)["position_ids"].tolist() == [[0, 1, 0, 1]]
