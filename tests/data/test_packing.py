import pytest
import torch
from datasets import Dataset
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from tests.data.chatml import chatml_tokenizer, turns
from tests.data.tokenised import mix_from
from tests.fixtures.llama import tiny_llama
from tometune.data.tokens import pack, tokenise

MOST = 96


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    conversations = [turns(f"question {n}", "answer " * (1 + n * 5 % 17)) for n in range(24)]
    return tokenise(mix_from(conversations), chatml_tokenizer(), MOST, tmp_path_factory.mktemp("tokens")).dataset


def conversations_of(block: dict[str, list[int]]) -> list[tuple[list[int], list[int]]]:
    """Split a block into (input_ids, labels) at its `seq_lengths`."""
    found, place = [], 0
    for length in block["seq_lengths"]:
        found.append((block["input_ids"][place : place + length], block["labels"][place : place + length]))
        place += length
    assert place == len(block["input_ids"]) == len(block["labels"]) <= MOST
    return found


def test_packs_hold_every_row_once_and_whole(rows: Dataset) -> None:
    packed = pack(rows, MOST)
    assert packed.column_names == ["input_ids", "labels", "seq_lengths"]
    assert len(packed) < len(rows) / 1.5
    found = [conversation for block in packed for conversation in conversations_of(block)]
    assert sorted(found) == sorted((row["input_ids"], row["labels"]) for row in rows)
    assert pack(rows, MOST)[:] == packed[:], "packing is deterministic"


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_conversation_in_a_pack_sees_no_other(rows: Dataset, attention: str) -> None:
    """The logits of a packed conversation are those that it has alone, and would differ if the lengths were lost."""
    blocks = [pack(rows, MOST)[number] for number in range(2)]
    lost = [{**block, "seq_lengths": [sum(block["seq_lengths"])]} for block in blocks]
    collate = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)
    llama = tiny_llama(chatml_tokenizer(), attn_implementation=attention)
    with torch.no_grad():
        packed, mixed = (
            llama(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits[0]
            for batch in (collate(blocks), collate(lost))
        )
        place = 0
        for block in blocks:
            for number, (ids, _) in enumerate(conversations_of(block)):
                part = slice(place, place + len(ids))
                alone = llama(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
                torch.testing.assert_close(packed[part], alone, atol=1e-5, rtol=0)
                assert number == 0 or (mixed[part] - alone).abs().max() > 1e-3
                place += len(ids)
    assert place == len(packed)
