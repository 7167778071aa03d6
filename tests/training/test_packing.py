"""Packed rows train as they would alone."""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention as attend
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, LlamaConfig
from trl.trainer.sft_trainer import _patch_chunked_ce_lm_head

from tests.training.conftest import Fitted, packs, settings
from tometune.common.errors import UserError
from tometune.models import packed_attention
from tometune.models.load import check_packs
from tometune.models.packed_attention import Packed
from tometune.training import batches
from tometune.training.batches import Capacity, Collator, Training, TrainingInputs

SIZES = {
    **{"vocab_size": 200, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "head_dim": 16},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512},
}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16}
FALCON_H1 = MAMBA | {"mamba_d_ssm": 128}


@pytest.mark.parametrize(
    ("attention", "loss", "checkpointing"), [("sdpa", "chunked_nll", False), ("eager", "nll", True)]
)
def test_the_loss_of_a_packed_block_is_that_of_its_rows_alone(train, tmp_path, attention, loss, checkpointing):
    """With the loss of the trainer itself, on the batch it trained on."""
    config = settings(**packs(256, 2), max_steps=1, loss_type=loss, gradient_checkpointing=checkpointing)
    config.model.attn_implementation = attention
    fitted = train(tmp_path, config)
    (given,) = fitted.batches
    lengths = {"cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"} if attention == "sdpa" else set()
    batch = {name: given[name] for name in ("input_ids", "labels", "position_ids")}
    assert given.keys() - lengths == batch.keys()
    starts = (batch["position_ids"][0] == 0).nonzero().flatten().tolist()
    assert len(starts) > 3
    with torch.no_grad():  # who attends to whom shows in the loss only if the random weights are large enough
        for name, weight in fitted.trainer.model.named_parameters():
            if "proj" in name and "lora" not in name:
                weight.mul_(6)
    trained = (batch["labels"] != -100).sum()
    together = loss_of(fitted, batch, trained)
    rows = [slice(start, end) for start, end in zip(starts, [*starts[1:], None], strict=True)]
    alone = sum(loss_of(fitted, {name: batch[name][:, row] for name in batch}, trained) for row in rows)
    assert together == pytest.approx(alone, abs=1e-5)

    # The same block with one mask over all, as a collator that pads would make it, must differ.
    one_mask = {name: batch[name] for name in ("input_ids", "labels")}
    one_mask["attention_mask"] = torch.ones_like(batch["input_ids"])
    assert abs(loss_of(fitted, one_mask, trained) - alone) > 1e-3


def test_conversations_without_padding_train_as_they_do_with_it(plain, train, tmp_path):
    flat = train(tmp_path, settings(packing=True, micro_batch=2))
    assert flat.result.padded_tokens == flat.result.tokens == plain.result.tokens < plain.result.padded_tokens
    assert [len(batch["input_ids"]) for batch in flat.batches] == [1] * 6
    assert flat.losses == pytest.approx(plain.losses, abs=1e-5)


def test_a_model_with_a_window_keeps_it(train, tmp_path, monkeypatch):
    """Attentions over lengths know no window; masks of transformers do."""
    for window, attention in ((16, "sdpa"), (256, packed_attention.PER_CONVERSATION)):
        monkeypatch.setattr(LlamaConfig, "sliding_window", window, raising=False)
        fitted = train(tmp_path / str(window), settings(**packs(96, 2), max_steps=1))
        assert fitted.result.attention == attention


PACKS = [
    {"input_ids": [5, 6, 7, 8, 9], "labels": [-100, 6, -100, 8, 9], "seq_lengths": [2, 3]},
    {"input_ids": [1, 2, 3], "labels": [-100, 2, 3], "seq_lengths": [3]},
]


def test_the_attention_gets_the_lengths_of_all_conversations():
    """Only a GPU's kernels go by lengths, so one length for a whole pack would go unnoticed on a CPU."""
    batch = Collator(0, padding_free=True, packed=Packed.lengths)(PACKS)
    assert batch["position_ids"].tolist() == [[0, 1, 0, 1, 2, 0, 1, 2]]
    assert batch["labels"].tolist() == [[-100, 6, -100, 8, 9, -100, 2, 3]]
    assert batch["cu_seq_lens_q"].tolist() == batch["cu_seq_lens_k"].tolist() == [0, 2, 5, 8]
    assert batch["cu_seq_lens_q"].dtype is torch.int32
    assert batch["max_length_q"] == batch["max_length_k"] == 3
    assert "parts" not in batch
    graph = Collator(0, padding_free=True, packed=Packed.lengths, capacity=Capacity(2, 9))(PACKS)
    assert [part.ends for part in graph["parts"]] == [slice(0, 3), slice(2, 4)]
    assert Collator(0, padding_free=True, packed=Packed.unsloth)(PACKS)["packed_seq_lengths"].tolist() == [2, 3, 3]
    rows = [{name: row[name] for name in ("input_ids", "labels")} for row in PACKS]
    assert Collator(0, padding_free=True, packed=Packed.lengths)(rows)["cu_seq_lens_q"].tolist() == [0, 5, 8]


def test_training_over_lengths_is_training_over_masks(train, tmp_path, monkeypatch):
    """The whole way of the lengths, from packs to the attention, with a slow kernel that runs on a CPU."""
    seen: list[list[int]] = []

    def kernel(q: Any, k: Any, v: Any, ends: Any, ends_k: Any, longest: int, *_: Any, scale: float, **__: Any) -> Any:
        lengths = ends.diff().tolist()
        assert (ends_k is ends, max(lengths)) == (True, longest)
        seen.append(lengths)
        parts = [[part.transpose(0, 1)[None] for part in whole.split(lengths)] for whole in (q, k, v)]
        done = [attend(*part, is_causal=True, scale=scale, enable_gqa=True)[0] for part in zip(*parts, strict=True)]
        return torch.cat([part.transpose(0, 1) for part in done])

    config = settings(**packs(96, 2), max_steps=3)
    by_mask = train(tmp_path / "mask", config)
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda _: torch.float32)  # GPU kernels need 16 bits, this does not
    monkeypatch.setattr(packed_attention, "_varlen", lambda: kernel)
    monkeypatch.setattr(batches, "kernel", lambda *_: (packed_attention.VARLEN, "test"))
    by_lengths = train(tmp_path / "lengths", config)
    assert by_lengths.result.attention == "varlen"
    assert min(map(len, seen)) >= 2
    assert by_lengths.losses == pytest.approx(by_mask.losses, abs=1e-5)
    assert by_lengths.column("grad_norm") == pytest.approx(by_mask.column("grad_norm"), rel=1e-3)


def training_of(fitted: Fitted, kind: str, changes: dict[str, Any], **trainer: Any) -> Training:
    """Return the training of a small random model of a kind that transformers knows."""
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**SIZES | changes))
    config, tokenizer = settings(**trainer), fitted.trainer.processing_class
    source: Any = SimpleNamespace(config=config.model)
    rest = (config.trainer, config.lora, config.seeds, fitted.folder, fitted.folder)
    return Training(model, tokenizer, TrainingInputs(source, fitted.tokens, *rest), lambda *_: None)


@pytest.mark.parametrize(
    ("kind", "changes", "loss"),
    [
        ("llama", {}, "chunked_nll"),
        ("cohere", {"logit_scale": 0.25}, "chunked_nll"),
        ("granite", {"logits_scaling": 1.0}, "chunked_nll"),
        ("granite", {"logits_scaling": 8.0}, "nll"),
        ("falcon_h1", FALCON_H1 | {"lm_head_multiplier": 0.1}, "nll"),
    ],
)
def test_the_chunked_loss_is_used_where_it_is_the_models_own(plain, kind, changes, loss):
    training = training_of(plain, kind, changes)
    assert training.inputs.trainer.loss_type == loss
    model, ids = training.model.eval(), torch.arange(3, 43)[None]
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3)
        own = float(model(input_ids=ids, labels=ids).loss)
        _patch_chunked_ce_lm_head(model, chunk_size=32)
        assert (float(model(input_ids=ids, labels=ids).loss) == pytest.approx(own, rel=1e-4)) == (loss != "nll")


@pytest.mark.parametrize(
    ("kind", "changes", "packed"),
    [
        ("llama", {}, True),
        ("qwen3", {}, True),
        ("gemma3_text", {"sliding_window": 16}, True),
        ("qwen3_5_text", {"layer_types": [*["linear_attention"] * 3, "full_attention"]}, False),
        ("falcon_h1", FALCON_H1, False),
        ("lfm2", {"layer_types": ["conv", "conv", "full_attention", "conv"]}, False),
        ("granitemoehybrid", MAMBA | {"layer_types": [*["mamba"] * 3, "attention"], "num_local_experts": 0}, False),
    ],
)
def test_layers_that_would_mix_conversations_are_not_trained_in_packs(kind, changes, packed):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**SIZES | changes))
    fix = "; set trainer.packing=false trainer.conversations_per_step=8$"
    with (
        nullcontext() if packed else pytest.raises(UserError, match=f"^trainer.packing=true: layers of {kind} .*{fix}")
    ):
        check_packs(model)


def loss_of(fitted: Fitted, batch: dict[str, torch.Tensor], trained: torch.Tensor) -> float:
    """Return the trainer's loss of a batch as a share of `trained` tokens."""
    with torch.no_grad():
        inputs = {name: value.clone() for name, value in batch.items()}
        return float(fitted.trainer.compute_loss(fitted.trainer.model, inputs, num_items_in_batch=trained))
