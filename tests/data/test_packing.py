from pathlib import Path

import pytest
import torch
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from tests.data.chatml import chatml_tokenizer, turns
from tests.data.tokenised import mix_from
from tests.fixtures.llama import tiny_llama
from tometune.data.labels import IGNORE
from tometune.data.packing import pack
from tometune.data.tokens import Tokens, tokenise

MOST = 96


@pytest.fixture
def rows(tmp_path: Path) -> Tokens:
    conversations = [turns(f"question {n}", "answer " * (1 + n * 5 % 17)) for n in range(24)]
    return tokenise(mix_from(conversations), chatml_tokenizer(), MOST, tmp_path)


def test_packs_hold_every_row_once_and_whole(rows: Tokens) -> None:
    packed = pack(rows.dataset, MOST)
    assert packed.column_names == ["input_ids", "labels", "seq_lengths"]
    assert len(packed) < len(rows.dataset) / 1.5
    found = []
    for block in packed:
        assert sum(block["seq_lengths"]) == len(block["input_ids"]) == len(block["labels"]) <= MOST
        place = 0
        for length in block["seq_lengths"]:
            part = slice(place, place + length)
            found.append((block["input_ids"][part], block["labels"][part]))
            place += length
    assert sorted(found) == sorted((row["input_ids"], row["labels"]) for row in rows.dataset)


def test_packing_is_the_same_each_time(rows: Tokens) -> None:
    assert pack(rows.dataset, MOST)[:] == pack(rows.dataset, MOST)[:]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_conversation_in_a_pack_sees_no_other(rows: Tokens, attention: str) -> None:
    """The logits of each packed conversation are those it has alone; with one mask over all, they are not."""
    packed = pack(rows.dataset, MOST)
    collator = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)
    batch = collator([packed[0], packed[1]])
    assert set(batch) == {"input_ids", "labels", "position_ids"}
    lengths = [*packed[0]["seq_lengths"], *packed[1]["seq_lengths"]]
    assert len(lengths) > 3
    llama = tiny_llama(chatml_tokenizer(), attn_implementation=attention)
    with torch.no_grad():
        together = llama(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits[0]
        mixed = llama(input_ids=batch["input_ids"], use_cache=False).logits[0]
        place = 0
        for number, length in enumerate(lengths):
            part = slice(place, place + length)
            alone = llama(input_ids=batch["input_ids"][:, part], use_cache=False).logits[0]
            torch.testing.assert_close(together[part], alone, atol=1e-5, rtol=0)
            assert number == 0 or (mixed[part] - alone).abs().max() > 1e-3, "the comparison would show a mixture"
            assert batch["labels"][0, place] == IGNORE
            place += length
    assert place == batch["input_ids"].shape[1]


def test_no_conversation_is_asked_for_the_first_token_of_the_next(rows: Tokens) -> None:
    everything = rows.dataset.map(lambda row: {"labels": row["input_ids"]})  # even if labels were on every token
    packed = pack(everything, MOST)
    batch = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)([packed[0], packed[1]])
    starts = batch["position_ids"][0] == 0
    assert int(starts.sum()) == len(packed[0]["seq_lengths"]) + len(packed[1]["seq_lengths"])
    assert (batch["labels"][0][starts] == IGNORE).all()
    assert (batch["labels"][0][~starts] == batch["input_ids"][0][~starts]).all()
