"""Contamination: normalised words, planted copies, stock phrases, the cache, mixes."""

import random
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.conftest import conversation, error_of, files, write_jsonl
from tometune.config.data import Contamination
from tometune.data import parallel
from tometune.data.contamination import COPY_FROM, LENGTH, STOCK_PHRASE_ABOVE, EvaluationTexts, fold, of_mix, overlaps
from tometune.data.standardise import standardise

DELETE = str.maketrans("", "", string.punctuation)


def sentence(random_, length, prefix="w"):
    """Return words that no two calls share a sequence of."""
    return " ".join(f"{prefix}{random_.randrange(10**6)}" for _ in range(length))


@pytest.fixture
def found_in(tmp_path):
    """Return a function that returns (row, task, example) of all overlaps; a row is a text, two turns, or a dict."""

    def find(rows, texts):
        turns = ([row, "fine"] if isinstance(row, str) else row for row in rows)
        columns = [{"prompt": row[0], "completion": row[1]} if isinstance(row, list) else row for row in turns]
        file = write_jsonl(tmp_path / "rows.jsonl", columns)
        made = standardise(files(file), "data.base", tmp_path / "cache")
        assert len(made.rows) == len(rows)
        found = overlaps(made, EvaluationTexts(texts), tmp_path / "cache")
        return {(overlap["row"], overlap["task"], overlap["example"]) for overlap in found}

    return find


@given(st.lists(st.text(st.sampled_from(string.printable), max_size=80), max_size=6))
@settings(max_examples=100, deadline=None)
def test_ascii_words_are_those_of_the_harness(texts):
    assert [fold(text) for text in texts] == [text.lower().translate(DELETE).split() for text in texts]
    assert [fold(" ".join(fold(text))) for text in texts] == list(map(fold, texts))


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("The  Café’s “opening”, at 9:30!", "the cafes opening at 930"),
        ("ＦＵＬＬ　width", "full width"),
        ("cafe\u0301 no\u00a0break zero\u200bwidth \ud800", "cafe no break zerowidth"),
        ("漢字 ﬁne 😀 x²", "漢字 ﬁne x2"),
        ("a\x01b\x00c", "a b c"),
        ("… — !", ""),
    ],
)
def test_folding_beyond_ascii(text, same):
    assert " ".join(fold(text)) == same


def noisy(random_, words):
    """Return the same words in other case, with other punctuation and white space."""
    forms = ("{}", "({})", "{},", "“{}”", "*{}*")
    ends = (" ", "  ", "\n", "\t", "\u00a0", " — ")
    words = [random_.choice([word, word.upper()]) for word in words]
    return "".join(random_.choice(forms).format(word) + random_.choice(ends) for word in words)


@pytest.mark.parametrize("alone", [parallel.ALONE, 0], ids=["in this process", "in workers"])
def test_every_planted_sequence_is_found_and_nothing_else(found_in, alone, monkeypatch):
    """Workers hash words differently from this process."""
    monkeypatch.setattr(parallel, "ALONE", alone)
    monkeypatch.setattr(parallel, "cores", lambda: 2)
    random_ = random.Random(7)
    texts = [("qa", str(n), sentence(random_, random_.randrange(LENGTH, 90), "e")) for n in range(200)]
    rows, planted = [], set()
    for number, (task, example, text) in enumerate(texts):
        words = text.split()
        length = random_.randrange(LENGTH, len(words) + 1)
        start = random_.randrange(len(words) - length + 1)
        before, after = (sentence(random_, random_.randrange(30)) for _ in range(2))
        copy = words[start : start + length]
        cut = random_.randrange(1, length)
        turns = [f"{before} {noisy(random_, copy[:cut])}", f"{noisy(random_, copy[cut:])} {after}"]
        rows.append(turns if number % 2 else "\n".join(turns))
        planted.add((len(rows) - 1, task, example))
        almost = words[: LENGTH - 1]  # a word too few
        rows.append(f"{sentence(random_, 9)} {' '.join(almost)} {sentence(random_, 9)}")
        rows += [sentence(random_, 60) for _ in range(3)]
    assert found_in(rows, texts) == planted


PHRASE = "below is an instruction that describes a task paired with an input that provides further context respond"


def test_stock_phrases_are_no_overlap(found_in):
    random_ = random.Random(1)
    of_task = [("a", str(n), f"{PHRASE} {sentence(random_, 20, 'e')}") for n in range(4)]
    assert found_in([f"{PHRASE} {sentence(random_, 20)}" for _ in range(3)], of_task) == set()
    alone = [("b", "0", f"{PHRASE} {sentence(random_, 20, 'e')}")]
    many = [f"{sentence(random_, 5)} {PHRASE} {sentence(random_, 20)}" for _ in range(STOCK_PHRASE_ABOVE + 1)]
    assert found_in(many, alone) == set()
    assert len(found_in(many[:STOCK_PHRASE_ABOVE], alone)) == STOCK_PHRASE_ABOVE, "so few rows make no stock phrase"
    assert len(found_in(many[:1] * 30, alone)) == 30, "nor do repeats of one text"


def test_many_copies_are_no_stock_phrases(found_in):
    random_ = random.Random(2)
    short, long = sentence(random_, 15, "e"), sentence(random_, 120, "f")
    copies = [f"{sentence(random_, 5)} {short} {sentence(random_, 5)}" for _ in range(40)]
    stretch = " ".join(long.split()[10 : 10 + COPY_FROM])
    copies += [f"{sentence(random_, 5)} {stretch} {sentence(random_, 5)}" for _ in range(40)]
    found = found_in(copies, [("a", "0", short), ("a", "1", long)])
    assert found == {(row, "a", str(row // 40)) for row in range(80)}


def test_a_text_of_several_examples_overlaps_with_each(found_in):
    random_ = random.Random(3)
    paragraph, reference = sentence(random_, 40, "p"), sentence(random_, 14, "r")
    texts = [("qa", str(n), paragraph) for n in range(9)]
    texts += [("data", "0", f"{reference} {number}") for number in range(9)]
    texts.append(("qa", "9", sentence(random_, 40)))  # else all would share the paragraph
    found = found_in([f"read this: {paragraph}", f"it is so: {reference}"], texts)
    assert found == {*((0, "qa", str(n)) for n in range(9)), (1, "data", "0")}


def test_reasoning_tool_calls_and_tools_are_searched(found_in):
    text = "a café, naïve \\n " + sentence(random.Random(4), 14, "e")
    call = {"function": {"name": "reply", "arguments": {"to": [1], "text": text}}}
    turns = [{"reasoning_content": f"Well: {text}"}, {"tool_calls": [call]}, {}]
    rows = [
        {"messages": [{"role": "user", "content": f"q {n}"}, {"role": "assistant", "content": "a", **turn}]}
        for n, turn in enumerate(turns)
    ]
    rows[2]["tools"] = [{"type": "function", "function": {"name": "f", "description": text, "parameters": {}}}]
    assert found_in([*rows, "else"], [("t", "0", text)]) == {(row, "t", "0") for row in range(3)}


def test_a_text_of_all_examples_of_a_task_is_not_looked_for(found_in):
    texts = [(task, str(n), PHRASE) for task, count in (("a", 4), ("b", 3)) for n in range(count)]
    assert found_in([PHRASE], texts) == {(0, "b", str(n)) for n in range(3)}


def test_short_texts_are_looked_for_as_a_whole_or_counted(found_in):
    texts = [("t", "8", "one two three four five six seven eight"), ("t", "7", "a b c d e f g"), ("t", "0", "")]
    rows = ["Well: one, two, three, four, five, six, seven, EIGHT!", "one two three four five six seven nine"]
    rows.append("a b c d e f g")
    assert found_in(rows, texts) == {(0, "t", "8")}
    assert EvaluationTexts(texts).too_short == {"t": 2}
    assert found_in(["a\x01" * 50, "a\x00b"], []) == set()


TEXTS = [("qa", "7", "zero one two three four five six seven eight nine ten eleven twelve thirteen")]


def row(number, copied=False, **columns):
    made = conversation(number, **columns)
    if copied:
        made["conversations"][0]["value"] += f" {TEXTS[0][2].upper()}!"
    return made


POOL = [row(number, copied=number % 5 == 0, dataset="beta") for number in range(20, 60)]


def copied(mix):
    return sum("ELEVEN" in entry["messages"][0]["content"] for entry in mix.dataset)


def test_drop_leaves_the_other_rows(mix_of):
    base = [row(number, copied=number in (1, 4), source="alpha") for number in range(10)]
    options = {"contamination": Contamination.drop, "parts": {"texts": EvaluationTexts(TEXTS)}}

    def dropped(rows, base_rows=6):
        return mix_of(base, POOL, rows, base_rows=base_rows, **options)

    mix = dropped(38)
    assert (len(mix.row_ids), copied(mix)) == (38, 0)
    assert mix.facts["base"]["contaminated"] == {"qa": {"alpha": 2}}
    assert mix.facts["pool"]["contaminated"] == {"qa": {"beta": 8}}
    assert mix.facts["pool"]["contaminated_rows"] == 8
    assert mix.facts["pool"]["eligible"] == 32
    assert [len(part.examples["contaminated"]) for part in mix.parts.values()] == [2, 5]
    assert dropped(20).row_ids == mix.row_ids[:20], "mixes stay nested"
    assert "data.contamination=drop: 8), but" in error_of(dropped, 39)
    assert "contamination=drop: 2); set data.base.rows=8" in error_of(dropped, 20, base_rows=9)
    assert dropped(20, base_rows=None).facts["base"]["rows"] == 8, "all that are left"
    base[:] = [row(number, copied=True) for number in range(3)]
    assert error_of(dropped, 20).endswith("or set data.contamination=report")


def test_overlaps_of_a_mix_are_counted_by_task_and_source_and_cached(mix_of, tmp_path, caplog):
    caplog.set_level("INFO")
    mix = mix_of([row(number % 8, copied=number % 8 in (1, 4), source="alpha") for number in range(10)], POOL, 40)
    for _ in range(2):
        texts = EvaluationTexts([*TEXTS, ("other", "1", "a b c d e f g h i j k l m n o")])
        counted = of_mix(mix.rows, texts, tmp_path / "cache")
        assert counted.overlapping == copied(mix) == sum(counted.counts["qa"].values())
        assert counted.counts["qa"]["alpha"] == 3, "each repeat counts"
        assert counted.touched == {"qa": 1}
        assert list(counted.examples.items()) == [("qa", 1), ("other", 1)], "in the order of the tasks"
        assert (counted.shown[0]["shared"], counted.shown[0]["words"]) == (TEXTS[0][2], 14)
    assert len([record for record in caplog.records if "searched for evaluation texts" in record.message]) == 2
