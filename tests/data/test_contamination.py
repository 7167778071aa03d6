"""Contamination: normalised words against a plain reading, planted copies, stock phrases, the cache, mixes."""

import random
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.conftest import conversation, files, write_jsonl
from tometune.common.errors import UserError
from tometune.config.data import Contamination, DataConfig
from tometune.data import preview
from tometune.data.contamination import scan as scanning
from tometune.data.contamination.index import RUN, HeldOutText, index_of
from tometune.data.contamination.judge import COMMON, STRETCH, judge
from tometune.data.contamination.overlaps import HeldOut, of_mix, overlaps
from tometune.data.contamination.scan import scan
from tometune.data.contamination.words import fold, words_of
from tometune.data.mix import build_mix
from tometune.data.standardise import standardise

DELETE = str.maketrans("", "", string.punctuation)


def plain_words(text: str) -> list[str]:
    """The normalisation of lm-evaluation-harness' janitor, for ASCII."""
    return text.lower().translate(DELETE).split()


def sentence(random_: random.Random, length: int, prefix: str = "w") -> str:
    """Words that no two calls share a run of."""
    return " ".join(f"{prefix}{random_.randrange(10**6)}" for _ in range(length))


def found_in(rows: Sequence[str | list[str]], texts: Sequence[tuple[str, str, str]]) -> set[tuple[int, str, str]]:
    """(row, task, example) of all overlaps; a row is a text, or its turns."""
    index = index_of([HeldOutText(*text) for text in texts])
    messages = [
        [{"role": "user", "content": turn} for turn in ([row] if isinstance(row, str) else row)] for row in rows
    ]
    kind = pa.list_(pa.struct({"role": pa.string(), "content": pa.string()}))
    found = judge(index, scan(index, pa.chunked_array([pa.array(messages, type=kind)])))
    return {(overlap.row, *owner) for overlap in found for owner in index.owners[overlap.text]}


@given(st.lists(st.text(st.sampled_from(string.printable), max_size=80), max_size=6))
@settings(max_examples=150, deadline=None)
def test_ascii_words_are_those_of_the_harness(texts: list[str]) -> None:
    assert [fold(text).split() for text in texts] == [plain_words(text) for text in texts]


@given(st.lists(st.text(max_size=40), min_size=1, max_size=5))
@settings(max_examples=150, deadline=None)
def test_any_text_is_folded_the_same_alone_and_in_a_batch(texts: list[str]) -> None:
    words = words_of(pa.array(texts, type=pa.string()))
    ends = dict(zip(words.order.tolist(), words.borders.tolist(), strict=True))
    begins = dict(zip(words.order.tolist(), [0, *(words.borders[:-1] + 1).tolist()], strict=True))
    for row, text in enumerate(texts):
        spelt = words.spelt(begins[row], ends[row] - begins[row]).decode() if ends[row] > begins[row] else ""
        assert spelt == fold(text)
        assert fold(fold(text)) == fold(text)


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("The  Café’s “opening”, at 9:30!", "the cafes opening at 930"),
        ("ＦＵＬＬ　width", "full width"),
        ("cafe\u0301 no\u00a0break zero\u200bwidth", "cafe no break zerowidth"),
        ("漢字 ﬁne 😀 x²", "漢字 ﬁne x2"),
        ("a\x01b\x00c", "a b c"),
        ("… — !", ""),
    ],
)
def test_folding_beyond_ascii(text: str, same: str) -> None:
    assert fold(text) == same


@pytest.mark.parametrize("seed", range(3))
def test_the_scan_finds_what_a_plain_search_finds(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With so few different words that runs abound, and batches of a few rows."""
    monkeypatch.setattr(scanning, "HEAVY", 5_000)
    random_ = random.Random(seed)
    vocabulary = ["alpha", "b", "extraordinarily-antidisestablishmentarian", "Ünïcode"]
    made = [" ".join(random_.choices(vocabulary[seed : seed + 2], k=random_.randrange(60))) for _ in range(300)]
    texts = [HeldOutText("t", str(number), text) for number, text in enumerate(made[:40])]
    index = index_of(texts)
    kind = pa.list_(pa.struct({"role": pa.string(), "content": pa.string()}))
    rows = pa.array([[{"role": "user", "content": text}] for text in made[40:]], type=kind)
    found = scan(index, pa.chunked_array([rows.slice(0, 100), rows.slice(100)]))
    wanted: set[tuple[str, ...]] = set()
    for text in made[:40]:
        words = fold(text).split()
        if len(words) >= 8:
            length = min(len(words), RUN)
            wanted |= {tuple(words[start : start + length]) for start in range(len(words) - length + 1)}
    expected = set()
    for row, text in enumerate(made[40:]):
        words = fold(text).split()
        for length in {len(run) for run in wanted}:
            for start in range(len(words) - length + 1):
                if tuple(words[start : start + length]) in wanted:
                    expected.add((row, " ".join(words[start : start + length])))
    seen = {(row, index.spelt(run).decode()) for row, run in zip(found.rows.tolist(), found.runs.tolist(), strict=True)}
    assert seen == expected
    assert expected


def noisy(random_: random.Random, words: Sequence[str]) -> str:
    """The same words in other case, with other punctuation and white space."""
    made = []
    for word in words:
        word = random_.choice(
            [word, word.upper(), word.capitalize(), f"({word})", f"{word},", f"“{word}”", f"*{word}*"]
        )
        made.append(word + random_.choice([" ", "  ", "\n", "\t", "\u00a0", " — "]))
    return "".join(made)


def test_every_planted_run_is_found_and_nothing_else() -> None:
    random_ = random.Random(7)
    texts = [("qa", str(n), sentence(random_, random_.randrange(RUN, 90), "e")) for n in range(200)]
    rows: list[str | list[str]] = []
    planted = set()
    for number, (task, example, text) in enumerate(texts):
        words = text.split()
        length = random_.randrange(RUN, len(words) + 1)
        start = random_.randrange(len(words) - length + 1)
        before, after = (sentence(random_, random_.randrange(30)) for _ in range(2))
        copy = words[start : start + length]
        cut = random_.randrange(1, length)
        turns = [f"{before} {noisy(random_, copy[:cut])}", f"{noisy(random_, copy[cut:])} {after}"]
        rows.append(turns if number % 2 else "\n".join(turns))
        planted.add((len(rows) - 1, task, example))
        almost = words[: RUN - 1]  # a word too few
        rows.append(f"{sentence(random_, 9)} {' '.join(almost)} {sentence(random_, 9)}")
        rows += [sentence(random_, 60) for _ in range(3)]
    assert found_in(rows, texts) == planted


PHRASE = "below is an instruction that describes a task paired with an input that provides further context respond"


def test_stock_phrases_are_no_overlap() -> None:
    random_ = random.Random(1)
    of_task = [("a", str(n), f"{PHRASE} {sentence(random_, 20, 'e')}") for n in range(4)]
    assert found_in([f"{PHRASE} {sentence(random_, 20)}" for _ in range(3)], of_task) == set()
    alone = [("b", "0", f"{PHRASE} {sentence(random_, 20, 'e')}")]
    many = [f"{sentence(random_, 5)} {PHRASE} {sentence(random_, 20)}" for _ in range(COMMON + 1)]
    assert found_in(many, alone) == set()
    assert len(found_in(many[:COMMON], alone)) == COMMON, "so few rows make no stock phrase"


def test_many_copies_are_not_taken_for_stock_phrases() -> None:
    random_ = random.Random(2)
    short, long = sentence(random_, 15, "e"), sentence(random_, 120, "f")
    copies = [f"{sentence(random_, 5)} {short} {sentence(random_, 5)}" for _ in range(40)]
    stretch = " ".join(long.split()[10 : 10 + STRETCH])
    copies += [f"{sentence(random_, 5)} {stretch} {sentence(random_, 5)}" for _ in range(40)]
    found = found_in(copies, [("a", "0", short), ("a", "1", long)])
    assert found == {(row, "a", str(row // 40)) for row in range(80)}


def test_a_paragraph_of_many_questions_and_references_that_are_alike() -> None:
    random_ = random.Random(3)
    paragraph, reference = sentence(random_, 40, "p"), sentence(random_, 14, "r")
    texts = [("qa", str(n), paragraph) for n in range(9)]
    texts += [("data", "0", f"{reference} {number}") for number in range(9)]
    found = found_in([f"read this: {paragraph}", f"it is so: {reference}"], texts)
    assert found == {*((0, "qa", str(n)) for n in range(9)), (1, "data", "0")}


def test_short_texts_are_looked_for_as_a_whole_or_counted() -> None:
    texts = [("t", "8", "one two three four five six seven eight"), ("t", "7", "a b c d e f g"), ("t", "0", "")]
    rows = [
        "Well: one, two, three, four, five, six, seven, EIGHT!",
        "one two three four five six seven nine",
        "a b c d e f g",
    ]
    assert found_in(rows, texts) == {(0, "t", "8")}
    assert index_of([HeldOutText(*text) for text in texts]).too_short == {"t": 2}


def test_a_text_of_a_megabyte_an_empty_evaluation_and_odd_bytes() -> None:
    random_ = random.Random(4)
    huge = sentence(random_, 130_000, "h")
    assert len(huge) > 1_000_000
    middle = " ".join(huge.split()[70_000 : 70_000 + RUN])
    assert found_in([f"x {middle} y", "\x01" * 50, "", f"{huge}", "a\x00b"], [("t", "0", huge)]) == {
        (0, "t", "0"),
        (3, "t", "0"),
    }
    assert found_in(["anything at all"], []) == set()
    assert found_in([], [("t", "0", huge)]) == set()


TEXTS = [("qa", "7", "zero one two three four five six seven eight nine ten eleven twelve thirteen")]


def row(number: int, copied: bool = False, **columns: Any) -> dict[str, Any]:
    made = conversation(number, **columns)
    if copied:
        made["conversations"][0]["value"] += f" {TEXTS[0][2].upper()}!"
    return made


def config(tmp_path: Path, contamination: Contamination, rows: int = 12, base_rows: int | None = 6) -> DataConfig:
    base = [row(number, copied=number in (1, 4), source="alpha") for number in range(10)]
    pool = [row(number, copied=number % 5 == 0, dataset="beta") for number in range(20, 60)]
    return DataConfig(
        name="test",
        rows=rows,
        base=files(write_jsonl(tmp_path / "base.jsonl", base), rows=base_rows),
        pool=files(write_jsonl(tmp_path / "pool.jsonl", pool)),
        contamination=contamination,
    )


def copied(mix: Any) -> int:
    return sum("ELEVEN" in entry["messages"][0]["content"] for entry in mix.dataset)


def test_drop_draws_from_the_others(tmp_path: Path) -> None:
    held_out = HeldOut(TEXTS)
    cache = tmp_path / "cache"
    kept = build_mix(config(tmp_path, Contamination.report, rows=46), 0, cache)
    assert copied(kept) > 8
    mix = build_mix(config(tmp_path, Contamination.drop, rows=38), 0, cache, held_out=held_out)
    assert (len(mix.row_ids), copied(mix)) == (38, 0)
    assert mix.facts["base"]["contaminated"] == {"qa": {"alpha": 2}}
    assert mix.facts["pool"]["contaminated"] == {"qa": {"beta": 8}}
    assert mix.facts["pool"]["contaminated_rows"] == 8
    assert mix.facts["pool"]["eligible"] == 32
    assert [entry["origin"] for entry in mix.examples["contaminated"]] == ["base"] * 2 + ["pool"] * 5
    smaller = build_mix(config(tmp_path, Contamination.drop, rows=20), 0, cache, held_out=held_out)
    assert smaller.row_ids == mix.row_ids[:20], "mixes stay nested"
    with pytest.raises(UserError, match=r"data\.pool: 32 usable .* data\.contamination=drop: 8\), but"):
        build_mix(config(tmp_path, Contamination.drop, rows=39), 0, cache, held_out=held_out)
    with pytest.raises(UserError, match=r"has 8 usable .* data\.contamination=drop: 2\); set data\.base\.rows=8"):
        build_mix(config(tmp_path, Contamination.drop, rows=20, base_rows=9), 0, cache, held_out=held_out)
    steps = {name: number for (_, name), number in preview._steps(mix.facts["pool"]).items()}
    assert steps["− shares words with the evaluation"] == 8
    assert steps["usable"] - 8 == steps["left to draw from"], "none of them went for another reason"
    whole = build_mix(config(tmp_path, Contamination.drop, rows=20, base_rows=None), 0, cache, held_out=held_out)
    assert whole.facts["base"]["rows"] == 8, "all that are left"
    with pytest.raises(ValueError, match="needs the evaluation texts"):
        build_mix(config(tmp_path, Contamination.drop), 0, cache)


def test_overlaps_of_a_mix_are_counted_by_task_and_source_and_cached(tmp_path: Path, caplog: Any) -> None:
    caplog.set_level("INFO")
    data = config(tmp_path, Contamination.report, rows=40, base_rows=None)
    cache = tmp_path / "cache"
    mix = build_mix(data, 0, cache)
    assert data.pool is not None
    for _ in range(2):
        held_out = HeldOut([*TEXTS, ("other", "1", "a b c d e f g h i j k l m n o")])
        sources = {"base": data.base, "pool": data.pool}
        found = {
            name: overlaps(standardise(source, f"data.{name}", cache), held_out, cache)
            for name, source in sources.items()
        }
        told = of_mix(mix.row_ids, found, held_out)
        assert told.overlapping == copied(mix) == sum(told.counts["qa"].values())
        assert told.counts["qa"]["alpha"] == 2
        assert told.touched == {"qa": 1}
        assert list(told.examples.items()) == [("qa", 1), ("other", 1)], "in the order of the tasks"
        assert told.shown[0]["shared"] == TEXTS[0][2]
        assert told.shown[0]["words"] == 14
    assert len([record for record in caplog.records if "looked through" in record.message]) == 2


def test_repeats_in_a_base_are_counted_each_and_make_no_stock_phrase(tmp_path: Path) -> None:
    rows = [row(0, copied=True, source="alpha")] * 30
    rows[0]["conversations"][0]["value"] = rows[0]["conversations"][0]["value"].replace("ZERO ", "")
    data = DataConfig(name="test", rows=30, base=files(write_jsonl(tmp_path / "base.jsonl", rows), rows=30))
    mix = build_mix(data, 0, tmp_path / "cache")
    held_out = HeldOut(TEXTS)
    found = {"base": overlaps(standardise(data.base, "data.base", tmp_path / "cache"), held_out, tmp_path / "cache")}
    assert of_mix(mix.row_ids, found, held_out).counts == {"qa": {"alpha": 30}}


def test_the_hash_of_a_run_of_words_is_its_own() -> None:
    """No two of 200,000 different runs share one."""
    random_ = random.Random(5)
    words = words_of(pa.array([sentence(random_, 200_000, "")]))
    for length in (8, RUN):
        hashes = words.runs(length)[: 200_000 - length]
        assert len(np.unique(hashes)) == len(hashes)
