from hashlib import blake2b, sha256
from itertools import pairwise
from zlib import crc32

import numpy as np
import pytest

from tests.data.conftest import conversation, error_of

BASE = [conversation(number, source="b") for number in range(10)]
POOL = [conversation(number, dataset="p") for number in range(5, 45)]
NO_TURNS = [{"conversations": []}]
TOO_SMALL = "the base has 10 usable rows of 10 (dropped: none)"


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


def test_texts_are_compared_by_their_words(mix_of):
    turns = [{"from": "human", "value": " QUESTION\n0"}, {"from": "gpt", "value": "Answer  0"}]
    pool = [{"conversations": turns}, conversation(50), conversation("50 "), conversation(51)]
    mix = mix_of(BASE, pool, 12)
    assert mix.facts["pool"]["excluded"] == {"in_base": 1, "repeats": 1}
    assert {word.strip() for word in first_words(mix)[10:]} == {"question 50", "question 51"}


def test_a_base_keeps_the_rows_that_repeat_each_other(mix_of):
    mix = mix_of([BASE[0], BASE[1], BASE[0]], None, 3)
    assert sorted(first_words(mix)) == ["question 0", "question 0", "question 1"]
    assert mix.row_ids[1] == f"{mix.row_ids[0]}-2"


def test_the_draw_is_pinned(mix_of):
    """The same rows on every machine and with every release, or old results could not be repeated."""
    texts = [f"question {number} answer {number}" for number in range(10, 45)]
    keys = sorted(blake2b(text.encode(), digest_size=16).hexdigest() for text in texts)
    order = np.random.Generator(np.random.PCG64(np.random.SeedSequence([3, crc32(b"data")]))).permutation(35)
    mix = mix_of(BASE, POOL, 20, seed=3)
    assert mix.row_ids[10:] == [f"pool:{keys[index]}" for index in order[:10]]
    assert mix.digest == sha256("\n".join(mix.row_ids).encode()).hexdigest()[:20]
    assert mix.digest == "8adc9454fffc6f65724d"  # numpy may change its streams; this would tell


def test_without_a_number_of_base_rows_a_small_mix_is_drawn_from_the_base(mix_of):
    sizes = [mix_of(BASE, POOL, rows, base_rows=None).row_ids for rows in (4, 9, 10, 12)]
    assert [len(row_ids) for row_ids in sizes] == [4, 9, 10, 12]
    assert all(row_id.startswith("base:") for row_ids in sizes[:3] for row_id in row_ids)
    assert all(set(smaller) < set(larger) for smaller, larger in pairwise(sizes))


@pytest.mark.parametrize(
    ("base", "pool", "rows", "base_rows", "message"),
    [
        (BASE, POOL, 60, None, "data.pool: 35 usable rows of 40 (in the base: 5, repeats: 0, dropped: 0), but "),
        (BASE, BASE, 11, None, "data.pool: 0 usable rows of 10 (in the base: 10,"),
        (BASE, BASE[:1] * 30, 12, None, "data.pool: 0 usable rows of 30 (in the base: 30, repeats: 29,"),
        (BASE, [], 11, None, "data.pool.path={folder}/pool.jsonl: is empty; name a source that holds"),
        (BASE, NO_TURNS, 11, None, "data.pool: 0 usable rows of 1 (in the base: 0, repeats: 0, dropped: 1)"),
        (BASE, None, 11, None, "data.rows=11: the base has 10 rows and there is no pool for the other 1; choose a"),
        (BASE, POOL, 30, 20, f"data.base.rows=20: {TOO_SMALL}; set data.base.rows=10"),
        (BASE, None, 20, 20, f"data.base.rows=20: {TOO_SMALL}; set data.rows=10 data.base.rows=10"),
        (NO_TURNS, None, 1, None, "data.base: none of its 1 row is usable (dropped: no_assistant_turn 1); a row needs"),
        ([], None, 1, None, "data.base.path={folder}/base.jsonl: is empty; name a source that holds"),
    ],
)
def test_too_few_rows(mix_of, tmp_path, base, pool, rows, base_rows, message):
    assert error_of(mix_of, base, pool, rows, base_rows=base_rows).startswith(message.format(folder=tmp_path))


@pytest.mark.parametrize(
    ("rows", "base_rows", "pool"),
    [(20, 30, POOL), (8, 30, POOL), (20, 20, None), (8, 20, None), (30, 20, None), (30, 9, None)],
)
def test_the_advice_for_a_base_that_is_too_small_is_the_whole_fix(mix_of, rows, base_rows, pool):
    error = error_of(mix_of, BASE, pool, rows, base_rows=base_rows)
    settings = dict(found.split("=") for found in error.rpartition("set ")[2].split())
    rows = int(settings.get("data.rows", rows))
    assert len(mix_of(BASE, pool, rows, base_rows=int(settings.get("data.base.rows", base_rows))).row_ids) == rows
