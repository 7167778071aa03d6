"""Held-out rows: the same for every seed and size, and in no mix."""

from dataclasses import replace
from itertools import product

import pytest

from tests.config.conftest import config_of, sweep_of
from tests.data.conftest import conversation, error_of, files, write_jsonl
from tometune.config.data import DataConfig, HeldOutConfig, NearDedupConfig, PoolOrder, ScorerConfig, ScorerKind
from tometune.data.mix import build_mix
from tometune.data.preview import steps
from tometune.runs.identity import content_hash, identity

LONG = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
BASE = [conversation(f"{number} of the base", source="b") for number in range(40)]
REPEATS = [conversation(f"{number}  OF the base", source="b") for number in range(10)]
POOL = [conversation(number, source=f"p{number % 3}", score=(number * 7) % 50) for number in range(60)]


@pytest.fixture
def config(tmp_path):
    base = write_jsonl(tmp_path / "base.jsonl", [*BASE, *REPEATS])
    pool = write_jsonl(tmp_path / "pool.jsonl", [*POOL, *POOL[:9], *BASE[:7]])
    options = {"held_out": HeldOutConfig(rows=8), "scorer": ScorerConfig(ScorerKind.column)}
    return DataConfig(name="x", rows=50, base=files(base, rows=50), pool=files(pool), **options)


def texts(mix):
    """Normalised texts of a mix, and of its held-out rows by origin."""

    def of(rows):
        return [" ".join(turns[0]["content"].lower().split()) for turns in rows["messages"]]

    return of(mix.dataset), {origin: of(source.rows.select(rows)) for origin, (source, rows) in mix.held_out.items()}


def test_they_are_in_no_mix_of_any_size_and_seed_and_the_same_for_all(config, tmp_path):
    found = []
    for added, seed, order in [*product((0, 10, 30), (0, 1), [PoolOrder.random]), (10, 0, PoolOrder.best)]:
        changed = replace(config, rows=50 + added, pool=replace(config.pool, order=order))
        mix = build_mix(changed, seed, tmp_path / "cache")
        chosen, held_out = texts(mix)
        assert {origin: len(set(rows)) for origin, rows in held_out.items()} == {"base": 8, "pool": 8}
        assert not set(chosen) & {text for rows in held_out.values() for text in rows}, "nor are their repeats"
        repeated = sum(
            text in [" ".join(f"question {n} of the base".split()) for n in range(10)] for text in held_out["base"]
        )
        assert len(chosen) == 50 + added - 8 - repeated == len(mix.row_ids)
        assert repeated, "this test needs one"
        assert mix.facts["base"]["held_out"] == 8 + repeated
        assert dict(steps(mix.facts["base"]))["held_out"] == -8 - repeated
        assert [len(ids) for ids in mix.manifest()["held_out"].values()] == [8, 8]
        assert ("pool" in mix.facts) == (added > 0)
        found.append(held_out)
    assert all(held_out == found[0] for held_out in found)
    other = build_mix(replace(config, held_out=HeldOutConfig(rows=8, seed=1)), 0, tmp_path / "cache")
    assert texts(other)[1] != found[0]
    assert "held out: 8" in error_of(build_mix, replace(config, rows=105), 0, tmp_path / "cache")
    without = build_mix(replace(config, rows=60, held_out=HeldOutConfig()), 0, tmp_path / "cache")
    assert (len(without.row_ids), without.held_out, "held_out" in without.manifest()) == (60, {}, False)


def test_a_mix_that_is_drawn_from_the_base_has_all_its_rows_if_there_are_others(config, tmp_path):
    drawn = replace(config, base=replace(config.base, rows=None))
    sizes = {rows: len(build_mix(replace(drawn, rows=rows), 0, tmp_path / "cache").row_ids) for rows in (3, 10, 20)}
    assert sizes == {3: 3, 10: 10, 20: 20}
    whole = build_mix(replace(drawn, rows=60), 0, tmp_path / "cache")
    assert len(whole.row_ids) == 60 - whole.facts["base"]["held_out"]


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


@pytest.mark.parametrize(
    ("rows", "held_out", "problem"),
    [
        (8, 8, "data.held_out.rows=8: leaves no row of the base for data.rows=8; hold out fewer rows, or add rows"),
        (0, None, "data.base.path={}: is empty; name a source that holds conversations"),
        (3, None, "data.base: has 3 different rows, too few to hold out a tenth for scoring; add rows, or name a test"),
        (9, 12, "data.held_out.rows=12: data.base has 9 different rows that can be held out (without tools, rea"),
    ],
)
def test_a_file_with_too_few_rows(mix_of, tmp_path, rows, held_out, problem):
    error = error_of(mix_of, BASE[:rows], None, None, held_out=HeldOutConfig(rows=held_out, pool=False))
    assert error.startswith(problem.format(tmp_path / "base.jsonl"))


def test_near_duplicates_of_them_are_left_out(mix_of):
    def row(kind, number, end=""):
        return conversation(f"{kind} {number} " + " ".join(f"{kind}{number}{word}" for word in LONG.split()) + end)

    base = [row("base", number, end) for number in range(12) for end in ("", " indeed")]
    pool = [row("pool", number, end) for number in range(12) for end in ("", " indeed")]
    pool += [row("base", number, " truly") for number in range(12)]

    def variants(mix):
        """Rows of the mix that are the other variant of a held-out row."""
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
    mix = mix_of([*BASE[:6], *rows], None, 16, base_rows=16, held_out=HeldOutConfig(rows=6))
    assert sorted(texts(mix)[1]["base"]) == sorted(f"question {n} of the base" for n in range(6))
    assert set(mix.held_out) == {"base"}, "there is no pool"
    assert len(mix.row_ids) == 10
    said = error_of(mix_of, [*BASE[:6], *rows], None, 16, base_rows=16, held_out=HeldOutConfig(rows=7))
    assert said.startswith("data.held_out.rows=7: data.base has 6 different rows that can be held out")
    assert said.endswith("set data.held_out.rows=6 or less")


def test_the_name_says_so_and_the_default_changes_no_run():
    paths = ("data.base.path=base.jsonl", "data.pool.path=pool.jsonl")
    plain = config_of("data=files_200k", *paths)
    assert plain.data.name == "files_200k"
    assert "held_out" not in identity(plain, {})["data"]
    held_out = config_of("data=files_200k", *paths, "data.held_out.rows=500")
    assert held_out.data.name == "files_200k-held500"
    assert identity(held_out, {})["data"]["held_out"] == {"rows": 500, "seed": 0}
    configs = sweep_of("-m", "data=files_100k,files_200k", *paths, "data.held_out.rows=500")
    assert [config.data.pool.path for config in configs] == ["pool.jsonl"] * 2, "so that both have the same tasks"
    assert len({content_hash(identity(config, {})) for config in configs}) == 2
    assert config_of("data=files_100k", *paths, "data.held_out.rows=5").data.pool is not None
    assert config_of("data=files_100k", paths[0], "data.held_out.rows=5").data.pool is None
    (config,) = sweep_of("-m", "data=files_100k", paths[0], "data.held_out.seed=3")
    assert config.data.held_out == HeldOutConfig()
