"""Properties of mixes with weights, caps, filters, ranks and near-duplicates, for any data."""

import os
import random
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.data.conftest import error_of, files, write_jsonl
from tometune.config.data import DataConfig, FiltersConfig, NearDedupConfig, PoolOrder, ScorerConfig, ScorerKind
from tometune.data import parallel
from tometune.data.mix import build_mix

SOURCES = ("a", "b", "c-3.2")
WORDS = [f"w{number}" for number in range(40)]


def row(number, source, score=None, end=""):
    """Return a row whose words, but for one, are shared by rows of numbers that are equal but for their last digit."""
    words = random.Random(number // 10).choices(WORDS, k=25)
    words[number % 10] = f"x{number}"
    turns = [{"from": "human", "value": " ".join(words)}, {"from": "gpt", "value": f"answer {number // 10}{end} x"}]
    return {"conversations": turns, "dataset": source, "score": score}


ROWS = st.lists(
    st.builds(
        row,
        st.integers(0, 150),
        st.sampled_from(SOURCES),
        st.sampled_from([0.5, 1.0, 2.5]),
        st.sampled_from(["", "\n"]),
    ),
    min_size=1,
    max_size=80,
)
WEIGHTS = st.sampled_from([{}, {"a": 0.5}, {"a": 0.25, "c-3.2": 0.1}, {"b": 0.0}, {"a": 0.5, "b": 0.3, "c-3.2": 0.2}])
CAPS = st.sampled_from([{}, {"a": 5}, {"b": 1, "c-3.2": 3}])


def most(mix):
    """Return the rows of the largest possible mix, which the error for a larger one proposes."""
    return int(error_of(mix, 10_000).rpartition("data.rows=")[2])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    base=ROWS,
    pool=ROWS,
    seed=st.integers(0, 99),
    weights=WEIGHTS,
    caps=CAPS,
    order=st.sampled_from([order for order in PoolOrder if order is not PoolOrder.ifd]),
    threshold=st.sampled_from([None, 0.6]),
    least=st.sampled_from([None, 1.0]),
    share=st.floats(0, 1),
)
def test_mixes_are_nested_disjoint_exact_and_independent_of_file_layout(
    base, pool, seed, weights, caps, order, threshold, least, share
):
    pool = [*pool, *(row(1000 + number, source, 3.0) for number, source in enumerate(SOURCES))]  # all sources are there
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for name, rows in (("base", base), ("pool", pool)):
            write_jsonl(folder / "one" / name / "all.jsonl", rows)
            shuffled = random.Random(seed).sample(rows, len(rows))
            for part in range(min(3, len(rows))):
                write_jsonl(folder / "three" / name / f"{part}.jsonl", shuffled[part::3])

        def mix(rows, where="one"):
            config = DataConfig(
                rows=rows,
                base=files(folder / where / "base"),
                pool=files(folder / where / "pool", weights=weights, caps=caps, order=order),
                filters=FiltersConfig(min_score=least),
                near_dedup=NearDedupConfig(threshold=threshold),
                scorer=ScorerConfig(kind=ScorerKind.column),
            )
            return build_mix(config, seed, folder / "cache")

        largest = most(mix)
        large = mix(largest)
        size = len(base) + round(share * (largest - len(base)))
        small = mix(size)
        assert (len(large.dataset), len(small.dataset)) == (largest, size)
        assert large.row_ids[:size] == small.row_ids
        other = mix(largest, "three")
        assert (other.row_ids, other.sources) == (large.row_ids, large.sources)
        assert other.dataset.to_list() == large.dataset.to_list(), "the same of several texts that count as one"
        added = [row_id.partition(":")[2] for row_id in large.row_ids[len(base) :]]
        assert len(set(added)) == len(added)
        if not (weights or caps or threshold or least):
            distinct = [{row["conversations"][0]["value"] for row in rows} for rows in (base, pool)]
            assert len(added) == len(distinct[1] - distinct[0])
        assert not set(added) & {row_id.partition(":")[2][:32] for row_id in large.row_ids[: len(base)]}
        counts = Counter(large.dataset["source"][len(base) :])
        for source, weight in weights.items():
            assert abs(counts[source] - weight * len(added)) <= len(weights) + 1
        assert all(counts[source] <= cap for source, cap in caps.items())


def test_the_number_of_cores_does_not_change_a_mix(tmp_path, monkeypatch):
    monkeypatch.setattr("tometune.data.local_files.BATCH", 50)  # enough batches for several processes
    pool = [row(number, SOURCES[number % 3], 1.0) for number in range(2000)]
    write_jsonl(tmp_path / "pool.jsonl", [*pool, {"conversations": []}])
    write_jsonl(tmp_path / "base.jsonl", pool[::40])
    found = []
    for cores in (1, 2):
        monkeypatch.setattr(parallel, "cores", lambda cores=cores: cores)
        config = DataConfig(
            rows=300,
            base=files(tmp_path / "base.jsonl"),
            pool=files(tmp_path / "pool.jsonl", order=PoolOrder.best, weights={"a": 0.5}),
            near_dedup=NearDedupConfig(threshold=0.9),
        )
        mix = build_mix(config, 0, tmp_path / f"cache{cores}")
        found.append((mix.row_ids, mix.facts, mix.dataset.to_list()))
    assert found[0] == found[1]


def test_weights_are_shares_of_the_added_rows(mix_of):
    pool = [row(number * 10, "abab"[number % 4] if number < 200 else "c-3.2") for number in range(250)]

    def sources(rows, **drawn):
        return mix_of([row(5000, "base")], pool, rows, drawn=drawn).sources

    found = sources(101, weights={"c-3.2": 0.4})
    assert (found["c-3.2"], found["a"] + found["b"]) == (40, 60)
    assert 20 <= found["a"] <= 40  # as many as of b are in the pool
    assert "a" not in sources(101, weights={"a": 0})
    assert sources(101, caps={"a": 3})["a"] == 3
    error = error_of(sources, 101, weights={"c-3.1": 0.4})
    assert error.startswith("data.pool.weights.c-3.1: the pool has no such source; did you mean c-3.2?")
    error = error_of(sources, 201, weights={"c-3.2": 0.4})
    assert "126 can be added with these weights, because c-3.2 has 50 rows, and data.rows=201 " in error
    assert sources(126, weights={"c-3.2": 0.4})["c-3.2"] == 50


def _exit_at_one_item(item):
    if item == parallel.ALONE + 3:
        os._exit(9)
    return item


def test_a_killed_worker_is_reported(monkeypatch):
    monkeypatch.setattr(parallel, "cores", lambda: 2)
    with pytest.raises(RuntimeError, match="one of 2 worker processes was killed"):
        list(parallel.in_order(_exit_at_one_item, range(30)))


def test_a_mix_without_a_source_shares_all_other_rows_with_the_mix_of_all_sources(mix_of):
    base = [row(number, "b") for number in range(5)]
    pool = [row(100 + number, "xyz"[number % 3]) for number in range(60)]

    def mix(rows=25, **drawn):
        return mix_of(base, pool, rows, seed=3, drawn=drawn)

    whole, left = mix(), mix(without=["x"])
    assert left.sources.keys() == {"b", "y", "z"}
    assert len(left.row_ids) == len(whole.row_ids) == 25
    assert len({*whole.row_ids} - {*left.row_ids}) == whole.sources["x"] > 0, "only its rows were replaced"
    assert mix(only=["y", "z"]).row_ids == left.row_ids
    assert mix(only=["x"]).sources == {"x": 20, "b": 5}
    error = error_of(mix, without=["xx"])
    assert error == "data.pool.without=[xx]: the pool has no such source (sources: x, y, z)"
    error = error_of(mix, 46, without=["x"])
    assert "40 can be added because data.pool.without excludes the others, and data.rows=46 needs 41" in error


def test_the_longest_answers_come_first(mix_of):
    turns = [[{"from": "human", "value": "q" * (50 - n)}, {"from": "gpt", "value": "a" * n}] for n in range(1, 9)]
    pool = [{"conversations": entry} for entry in turns]
    mix = mix_of([row(1, "b")], pool, 4, drawn={"order": PoolOrder.longest})
    assert [len(messages[1]["content"]) for messages in mix.dataset["messages"][1:]] == [8, 7, 6]
