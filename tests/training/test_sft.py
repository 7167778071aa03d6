"""The loop over the real TRL and PEFT, on the tiny model."""

import dataclasses
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.data.conftest import files, write_jsonl
from tests.training import conftest
from tests.training.conftest import MOST, Fitted, Train, settings, talk
from tometune.common.errors import UserError
from tometune.config.data import DataConfig
from tometune.models.adapter import add_adapter


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
    fitted = train(tmp_path, settings(max_steps=None, conversations_per_step=3))
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
    assert "4 rows skipped: no trainable tokens left after truncation" in caplog.text
    assert "training: 16 rows" in caplog.text
    assert fitted.result.steps == 8
    assert all((batch["labels"] != -100).any(dim=1).all() for batch in fitted.batches)


def test_accumulation_is_the_same_as_a_larger_batch(train: Train, tmp_path: Path) -> None:
    """Rows of very different lengths: a mean of means over the parts would differ by far more than the tolerance."""
    sizes = ((4, 1), (2, 2), (1, 4))
    whole, *parts = (
        train(
            tmp_path / str(size),
            settings(conversations_per_step=size * count, micro_batch=size, max_steps=5),
        )
        for size, count in sizes
    )
    assert {fitted.result.effective_batch for fitted in (whole, *parts)} == {4}
    assert {fitted.result.tokens for fitted in parts} == {whole.result.tokens}
    for fitted in parts:
        for mine, theirs in zip(fitted.curve, whole.curve, strict=True):
            assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
            assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)


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
