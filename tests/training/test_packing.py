"""Packed rows train as they would alone."""

from pathlib import Path

import pytest
import torch
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from tests.training.conftest import Fitted, Train, packs, settings


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("loss", ["chunked_nll", "nll"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_loss_of_a_packed_block_is_that_of_its_rows_alone(
    train: Train, tmp_path: Path, attention: str, loss: str, checkpointing: bool
) -> None:
    """Through the trainer itself, on the batch it trained on: what is compared is what training does."""
    config = settings(**packs(256, 2), max_steps=1, loss_type=loss, gradient_checkpointing=checkpointing)
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
    fitted = train(tmp_path, settings(max_steps=1, conversations_per_step=4))
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
    packed = train(tmp_path / "packed", settings(**packs(160, 2), max_steps=None))
    assert packed.result.tokens == packed.result.padded_tokens == loose.result.tokens < loose.result.padded_tokens
    assert packed.result.trained_tokens == loose.result.trained_tokens
    assert packed.result.steps < loose.result.steps


def test_conversations_without_padding_train_as_they_do_with_it(train: Train, tmp_path: Path) -> None:
    padded = train(tmp_path / "padded", settings(conversations_per_step=4))
    flat = train(tmp_path / "flat", settings(conversations_per_step=4, packing=True, micro_batch=4))
    assert flat.result.padded_tokens == flat.result.tokens == padded.result.tokens < padded.result.padded_tokens
    assert [len(batch["input_ids"]) for batch in flat.batches] == [1] * 6
    for mine, theirs in zip(flat.curve, padded.curve, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-5)


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


def test_the_collator_packs_by_position_ids_only() -> None:
    collator = DataCollatorForLanguageModeling(0, padding_free=True)
    rows = [{"input_ids": [5, 6, 7, 8], "labels": [-100, 6, -100, 8], "seq_lengths": [2, 2]}]
    assert collator(rows)["position_ids"].tolist() == [[0, 1, 0, 1]]
