"""The values of a mix that a data card shows, compared with plain Python."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.data.chatml import chatml_tokenizer
from tests.data.conftest import conversation, files, write_jsonl
from tometune.config.data import DataConfig, PoolOrder, ScorerConfig, ScorerKind
from tometune.data.mix import Mix, build_mix
from tometune.data.profile import profile, repeats, samples
from tometune.data.tokens import tokenise


def long_one(mix: Mix) -> int:
    """The row of the mix with the longest text."""
    sizes = [sum(len(turn["content"]) for turn in messages) for messages in mix.dataset["messages"]]
    return sizes.index(max(sizes))


def test_each_row_is_measured(mix_of: Callable[..., Mix], tmp_path: Path) -> None:
    long = conversation("long " * 90, source="alpha")
    system = {"conversations": [{"from": "system", "value": "be kind"}, *conversation(5)["conversations"] * 2]}
    base = [*(conversation(n, source="alpha") for n in range(6)), conversation(0, source="alpha"), system, long]
    mix = mix_of(base, [conversation(f"p{n} é漢字", dataset="beta") for n in range(9)], 15, base_rows=9)
    tokens = tokenise(mix, chatml_tokenizer(), 64, tmp_path / "cache")
    assert np.flatnonzero(tokens.lengths == 0).tolist() == [long_one(mix)], "of the long one no answer is left"
    values = profile(mix, tokens)
    rows = list(mix.dataset)
    assert len(values) == 15
    assert [values.names[number] for number in values.sources] == [entry["source"] for entry in rows]
    assert values.names[:2] == ["alpha", "beta"]
    assert values.characters.tolist() == [sum(len(turn["content"]) for turn in entry["messages"]) for entry in rows]
    assert values.turns.tolist() == [sum(turn["role"] != "system" for turn in e["messages"]) for e in rows]
    assert values.pool.tolist() == [False] * 9 + [True] * 6
    assert values.tokens is not None
    kept = [len(entry["input_ids"]) for entry in tokens.dataset]
    kept.insert(long_one(mix), 0)
    assert values.tokens.tolist() == kept
    assert repeats(values) == {"alpha": 1}
    assert values.scores is None


def test_samples_are_drawn_with_the_seed(mix_of: Callable[..., Mix]) -> None:
    mix = mix_of([conversation(number) for number in range(40)], None, 40)
    drawn = samples(mix)
    assert drawn == samples(mix)
    assert len({entry["row_id"] for entry in drawn}) == 10
    assert all(mix.row_ids[entry["number"]] == entry["row_id"] for entry in drawn)
    assert len(samples(mix_of([conversation(0)], None, 1))) == 1


def test_samples_show_tool_calls(mix_of: Callable[..., Mix]) -> None:
    call = {"role": "assistant", "tool_calls": [{"name": "f", "arguments": {}}]}
    (row,) = samples(mix_of([{"messages": [{"role": "user", "content": "q"}, call]}], None, 1))
    assert row["messages"][0] == {"role": "user", "content": "q"}
    assert '{"name": "f", "arguments": {}}' in row["messages"][1]["content"]


def test_scores_are_those_of_the_column_or_of_the_scorer(tmp_path: Path) -> None:
    base = write_jsonl(tmp_path / "base.jsonl", [conversation(number) for number in range(3)])
    rows = [conversation(f"p{number} " * number, score=number / 2) for number in range(1, 9)]
    pool = write_jsonl(tmp_path / "pool.jsonl", rows)

    def built(order: PoolOrder = PoolOrder.random, kind: ScorerKind = ScorerKind.heuristic) -> Mix:
        config = DataConfig(rows=7, base=files(base), pool=files(pool, order=order), scorer=ScorerConfig(kind=kind))
        return build_mix(config, 0, tmp_path / "cache")

    found = [profile(built()), profile(built(PoolOrder.best, ScorerKind.column)), profile(built(PoolOrder.best))]
    drawn, best, ranked = (values.scores for values in found)
    assert drawn is not None
    assert best is not None
    assert ranked is not None
    assert np.isnan(drawn[:3]).all()
    rows_by_text = {entry["messages"][0]["content"]: entry for entry in built().dataset.to_list()[3:]}
    expected = {row["conversations"][0]["value"]: row["score"] for row in rows}
    assert drawn[3:].tolist() == [expected[text] for text in rows_by_text]
    assert best[3:].tolist() == [4.0, 3.5, 3.0, 2.5]
    assert not np.isnan(ranked).any()
    assert (np.diff(ranked[3:]) <= 0).all()
