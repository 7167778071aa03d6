"""Mixes: nested, disjoint and exact for any data, settings and seed; held-out rows are in none of them."""

import os
import random
import tempfile
from collections import Counter
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.config.conftest import config_of, sweep_of
from tests.data.conftest import conversation, error_of, files, write_jsonl
from tometune.config.data import (
    DataConfig,
    FiltersConfig,
    HeldOutConfig,
    NearDedupConfig,
    PoolOrder,
    ScorerConfig,
    ScorerKind,
)
from tometune.data import parallel
from tometune.data.mix import build_mix
from tometune.data.preview import steps
from tometune.runs.identity import content_hash, identity

BASE = [conversation(number, source="b") for number in range(10)]
POOL = [conversation(number, dataset="p") for number in range(5, 45)]
NO_TURNS = [{"conversations": []}]
TOO_SMALL = "the base has 10 usable rows of 10 (dropped: none)"
SOURCES = ("a", "b", "c-3.2")
WORDS = [f"w{number}" for number in range(40)]


def first_words(mix):
    return [messages[0]["content"] for messages in mix.dataset["messages"]]


def test_a_mix_is_the_whole_base_and_rows_of_the_pool(mix_of):
    mix = mix_of(BASE, POOL, 30)
    words = first_words(mix)
    assert sorted(words[:10]) == [f"question {number}" for number in range(10)]
    assert mix.row_ids[:10] == sorted(mix.row_ids[:10]), "the base is in the order of its keys"
    assert len(words) == len(set(words)) == len(mix.row_ids) == 30
    assert {int(word.split()[1]) for word in words[10:]} <= set(range(10, 45))
    assert mix.sources == {"p": 20, "b": 10}
    assert [row_id.partition(":")[0] for row_id in mix.row_ids] == ["base"] * 10 + ["pool"] * 20
    assert mix.facts["pool"]["excluded"] == {"in_base": 5, "repeats": 0}
    assert mix.facts["pool"]["eligible"] == 35
    assert mix.dataset.column_names == ["source", "messages", "extras"]
    assert mix.digest == "566065a5d8e133e3d333", "the same rows with every release"


def test_texts_are_compared_by_their_words_and_the_base_keeps_its_repeats(mix_of):
    turns = [{"from": "human", "value": " QUESTION\n0"}, {"from": "gpt", "value": "Answer  0"}]
    pool = [{"conversations": turns}, conversation(50), conversation("50 "), conversation(51)]
    mix = mix_of([BASE[0], BASE[1], BASE[0]], pool, 5)
    assert mix.facts["pool"]["excluded"] == {"in_base": 1, "repeats": 1}
    words = [word.strip() for word in first_words(mix)]
    assert sorted(words[:3]) == ["question 0", "question 0", "question 1"]
    assert {*words[3:]} == {"question 50", "question 51"}
    assert mix.row_ids[1] == f"{mix.row_ids[0]}-2"


def test_without_a_number_of_base_rows_a_small_mix_is_drawn_from_the_base(mix_of):
    sizes = [mix_of(BASE, POOL, rows, base_rows=None).row_ids for rows in (4, 9, 10, 12)]
    assert [len(row_ids) for row_ids in sizes] == [4, 9, 10, 12]
    assert all(row_id.startswith("base:") for row_ids in sizes[:3] for row_id in row_ids)
    assert all(set(smaller) < set(larger) for smaller, larger in pairwise(sizes))


@pytest.mark.parametrize(
    ("base", "pool", "rows", "options", "message"),
    [
        (BASE, POOL, 60, {}, "data.pool: 35 usable rows of 40 (in the base: 5, repeats: 0, dropped: 0), but "),
        (BASE, BASE[:1] * 30, 12, {}, "data.pool: 0 usable rows of 30 (in the base: 30, repeats: 29,"),
        (BASE, [], 11, {}, "data.pool.path={folder}/pool.jsonl: is empty; name a source that holds"),
        (BASE, NO_TURNS, 11, {}, "data.pool: 0 usable rows of 1 (in the base: 0, repeats: 0, dropped: 1)"),
        (BASE, None, 11, {}, "data.rows=11: the base has 10 rows and there is no pool for the other 1; choose a"),
        (BASE, POOL, 30, {"base_rows": 20}, f"data.base.rows=20: {TOO_SMALL}; set data.base.rows=10"),
        (BASE, None, 20, {"base_rows": 20}, f"data.base.rows=20: {TOO_SMALL}; set data.rows=10 data.base.rows=10"),
        (NO_TURNS, None, 1, {}, "data.base: none of its 1 row is usable (dropped: no_assistant_turn 1); a row needs"),
        ([], None, 1, {}, "data.base.path={folder}/base.jsonl: is empty; name a source that holds"),
        (BASE[:8], None, None, {"held_out": HeldOutConfig(8)}, "data.held_out.rows=8: leaves no row of the base for"),
        (BASE[:3], None, None, {"held_out": HeldOutConfig(None)}, "data.base: has 3 different rows, too few to hold"),
    ],
)
def test_too_few_rows(mix_of, tmp_path, base, pool, rows, options, message):
    assert error_of(mix_of, base, pool, rows, **options).startswith(message.format(folder=tmp_path))


@pytest.mark.parametrize(
    ("rows", "base_rows", "pool"),
    [(20, 30, POOL), (8, 30, POOL), (20, 20, None), (8, 20, None), (30, 20, None), (30, 9, None)],
)
def test_the_advice_for_a_base_that_is_too_small_is_the_whole_fix(mix_of, rows, base_rows, pool):
    error = error_of(mix_of, BASE, pool, rows, base_rows=base_rows)
    settings = dict(found.split("=") for found in error.rpartition("set ")[2].split())
    rows = int(settings.get("data.rows", rows))
    assert len(mix_of(BASE, pool, rows, base_rows=int(settings.get("data.base.rows", base_rows))).row_ids) == rows


def row(number, source, score=None, end=""):
    """Return a row whose words, but for one, are shared by rows of numbers that are equal but for their last digit."""
    words = random.Random(number // 10).choices(WORDS, k=25)
    words[number % 10] = f"x{number}"
    turns = [{"from": "human", "value": " ".join(words)}, {"from": "gpt", "value": f"answer {number // 10}{end} x"}]
    return {"conversations": turns, "dataset": source, "score": score}


SCORES, ENDS = st.sampled_from([0.5, 1.0, 2.5]), st.sampled_from(["", "\n"])
ROW = st.builds(row, st.integers(0, 150), st.sampled_from(SOURCES), SCORES, ENDS)
ROWS = st.lists(ROW, min_size=1, max_size=80)
WEIGHTS = st.sampled_from([{}, {"a": 0.5}, {"a": 0.25, "c-3.2": 0.1}, {"b": 0.0}, {"a": 0.5, "b": 0.3, "c-3.2": 0.2}])
CAPS = st.sampled_from([{}, {"a": 5}, {"b": 1, "c-3.2": 3}])


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
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

        largest = int(error_of(mix, 10_000).rpartition("data.rows=")[2])  # the size that the error proposes
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
    error = error_of(sources, 101, weights={"c-3.1": 0.4})
    assert error.startswith("data.pool.weights.c-3.1: the pool has no such source; did you mean c-3.2?")
    error = error_of(sources, 201, weights={"c-3.2": 0.4})
    assert "126 can be added with these weights, because c-3.2 has 50 rows, and data.rows=201 " in error
    assert sources(126, weights={"c-3.2": 0.4})["c-3.2"] == 50


def test_a_killed_worker_is_reported(monkeypatch):
    monkeypatch.setattr(parallel, "cores", lambda: 2)
    with pytest.raises(RuntimeError, match="one of 2 worker processes was killed"):
        list(parallel.in_order(os._exit, [9] * 30))


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


HELD_BASE = [conversation(f"{number} of the base", source="b") for number in range(40)]
REPEATS = [conversation(f"{number}  OF the base", source="b") for number in range(10)]


@pytest.fixture
def config(tmp_path):
    rows = [conversation(number, source=f"p{number % 3}", score=(number * 7) % 50) for number in range(60)]
    base = write_jsonl(tmp_path / "base.jsonl", [*HELD_BASE, *REPEATS])
    pool = write_jsonl(tmp_path / "pool.jsonl", [*rows, *rows[:9], *HELD_BASE[:7], *HELD_BASE[:2]])
    options = {"held_out": HeldOutConfig(rows=8), "scorer": ScorerConfig(ScorerKind.column)}
    return DataConfig(name="x", rows=50, base=files(base, rows=50), pool=files(pool), **options)


def texts(mix):
    """Normalised texts of a mix, and of its held-out rows by origin."""

    def of(rows):
        return [" ".join(turns[0]["content"].lower().split()) for turns in rows["messages"]]

    return of(mix.dataset), {origin: of(source.rows.select(rows)) for origin, (source, rows) in mix.held_out.items()}


def test_held_out_rows_are_in_no_mix_of_any_size_and_seed_and_the_same_for_all(config, tmp_path):
    found = []
    for added, seed, order in [*product((0, 10, 30), (0, 1), [PoolOrder.random]), (10, 0, PoolOrder.best)]:
        changed = replace(config, rows=50 + added, pool=replace(config.pool, order=order))
        mix = build_mix(changed, seed, tmp_path / "cache")
        chosen, held_out = texts(mix)
        assert {origin: len(set(rows)) for origin, rows in held_out.items()} == {"base": 8, "pool": 8}
        assert not set(chosen) & {text for rows in held_out.values() for text in rows}, "nor are their repeats"
        repeated = len({f"question {n} of the base" for n in range(10)} & {*held_out["base"]})
        assert len(chosen) == 50 + added - 8 - repeated == len(mix.row_ids)
        assert repeated, "this test needs one"
        assert mix.facts["base"]["held_out"] == 8 + repeated
        assert dict(steps(mix.facts["base"]))["held_out"] == -8 - repeated
        assert [len(ids) for ids in mix.manifest()["held_out"].values()] == [8, 8]
        assert ("pool" in mix.facts) == (added > 0)
        if added:
            dropped = {"in_base": -9, "repeats": -9, "held_out": -8}
            assert dict(steps(mix.facts["pool"])) == {"read": 78, **dropped, "eligible": 52, "taken": added}
        found.append(held_out)
    assert all(held_out == found[0] for held_out in found)
    other = build_mix(replace(config, held_out=HeldOutConfig(rows=8, seed=1)), 0, tmp_path / "cache")
    assert texts(other)[1] != found[0]
    assert "held out: 8" in error_of(build_mix, replace(config, rows=105), 0, tmp_path / "cache")
    without = build_mix(replace(config, rows=60, held_out=HeldOutConfig()), 0, tmp_path / "cache")
    assert (len(without.row_ids), without.held_out, "held_out" in without.manifest()) == (60, {}, False)


def test_a_mix_that_is_drawn_from_the_base_has_all_its_rows_if_others_are_held_out(config, tmp_path):
    drawn = replace(config, base=replace(config.base, rows=None))
    mixes = [build_mix(replace(drawn, rows=rows), 0, tmp_path / "cache") for rows in (3, 20, 38, 45, 50, 60)]
    left = 50 - mixes[0].facts["base"]["held_out"]
    assert 38 < left < 45
    assert [len(mix.row_ids) for mix in mixes] == [3, 20, 38, left, left, left + 10]
    assert all(set(small.row_ids) <= set(large.row_ids) for small, large in pairwise(mixes))


def test_null_takes_all_rows_and_holds_out_a_tenth(config, tmp_path):
    base, pool = replace(config.base, rows=None), replace(config.pool, draw=False)
    config = replace(config, rows=None, base=base, pool=pool, held_out=HeldOutConfig(rows=None, pool=False))
    adds = (None, 0, 5, 20)
    mixes = [build_mix(replace(config, pool=replace(pool, add=add)), 0, tmp_path / "cache") for add in adds]
    held_out = [texts(mix)[1] for mix in mixes]
    assert [*held_out[0]] == ["base"]
    assert len(held_out[0]["base"]) == 4, "of 40 texts"
    assert held_out == [held_out[0]] * 4
    alone = 50 - mixes[0].facts["base"]["held_out"]
    assert [len(mix.row_ids) for mix in mixes] == [alone, alone, alone + 5, alone + 20]
    assert set(mixes[2].row_ids) < set(mixes[3].row_ids)
    whole = build_mix(replace(config, pool=replace(pool, draw=True), held_out=HeldOutConfig()), 0, tmp_path / "cache")
    assert len(whole.row_ids) == 50 + 60, "all rows of the base, and all of the pool that differ"
    problem = error_of(build_mix, replace(config, pool=replace(pool, add=61)), 0, tmp_path / "cache")
    assert problem.endswith("but data.pool.add=61 needs 61 of them; add rows to the pool, or set data.pool.add=60")


def test_near_duplicates_of_held_out_rows_are_left_out(mix_of):
    def row(kind, number, end=""):
        return conversation(f"{kind} {number} " + " ".join(f"{kind}{number}{word}" for word in range(40)) + end)

    base, pool = ([row(kind, number, end) for number in range(12) for end in ("", " indeed")] for kind in "bp")
    pool += [row("b", number, " truly") for number in range(12)]

    def variants(mix):
        """Return the rows of the mix that are the other variant of a held-out row."""
        chosen, held_out = texts(mix)
        numbers = {" ".join(text.split()[1:3]) for rows in held_out.values() for text in rows}
        return numbers & {" ".join(text.split()[1:3]) for text in chosen}

    four = HeldOutConfig(rows=4)
    mix = mix_of(base, pool, 28, base_rows=24, near_dedup=NearDedupConfig(0.7), held_out=four)
    chosen, held_out = texts(mix)
    assert not variants(mix)
    assert variants(mix_of(base, pool, 28, base_rows=24, held_out=four))
    bases = {text.split()[2] for text in held_out["base"]}
    assert len(chosen) == 28 - 2 * len(bases), "both variants of each are missing"


def test_rows_that_a_task_cannot_ask_for_are_not_held_out(mix_of):
    result, answer = {"role": "tool", "content": "t"}, {"role": "assistant", "content": "a"}
    unusual = ([result, answer], [{**answer, "reasoning_content": "r"}])
    rows = [{"messages": [{"role": "user", "content": f"u{n}"}, *unusual[n % 2]]} for n in range(10)]
    mix = mix_of([*HELD_BASE[:6], *rows], None, 16, base_rows=16, held_out=HeldOutConfig(rows=6))
    assert sorted(texts(mix)[1]["base"]) == sorted(f"question {n} of the base" for n in range(6))
    assert set(mix.held_out) == {"base"}, "there is no pool"
    assert len(mix.row_ids) == 10
    said = error_of(mix_of, [*HELD_BASE[:6], *rows], None, 16, base_rows=16, held_out=HeldOutConfig(rows=7))
    assert said.startswith("data.held_out.rows=7: data.base has 6 different rows that can be held out")
    assert said.endswith("set data.held_out.rows=6 or less")


def test_held_out_rows_are_in_the_name_and_the_identity_and_the_default_changes_no_run():
    paths = ("data.base.path=base.jsonl", "data.pool.path=pool.jsonl")
    plain = config_of("data=files_200k", *paths)
    assert (plain.data.name, "held_out" in identity(plain, {})["data"]) == ("files_200k", False)
    configs = sweep_of("-m", "data=files_100k,files_200k", *paths, "data.held_out.rows=500")
    assert [config.data.name for config in configs] == ["files_100k-held500", "files_200k-held500"]
    assert [config.data.pool.path for config in configs] == ["pool.jsonl"] * 2, "so that both have the same tasks"
    assert len({content_hash(identity(config, {})) for config in configs}) == 2
    assert identity(configs[1], {})["data"]["held_out"] == {"rows": 500, "seed": 0}
    assert config_of("data=files_100k", paths[0], "data.held_out.rows=5").data.pool is None
    (config,) = sweep_of("-m", "data=files_100k", paths[0], "data.held_out.seed=3")
    assert config.data.held_out == HeldOutConfig()
