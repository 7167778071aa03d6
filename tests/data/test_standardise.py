import logging
import multiprocessing
from hashlib import blake2b

import pytest

from tests.data.conftest import conversation, files, write_jsonl
from tometune.common.errors import UserError
from tometune.config.data import RowFormat
from tometune.data.standardise import standardise, text_key

ALPACA = {"instruction": "Question 1", "input": "", "output": "answer\n1"}


def turn(role, text):
    return {"from": role, "value": text}


def test_rows_keys_and_counts_by_reason_and_source(tmp_path):
    odd = {"conversations": [None, turn("human", "q"), turn("gpt", "a"), turn("human", "?")], "dataset": "d"}
    rows = [
        conversation(1, source="s"),
        conversation(1),
        odd,
        {"conversations": None, "source": "s"},
        {"conversations": [turn("human", "q")], "source": "t"},
        conversation(2, source="s \ud800"),
    ]
    made = standardise(files(write_jsonl(tmp_path / "x.jsonl", rows)), "data.base", tmp_path / "cache")
    assert made.rows["source"][:] == ["s", "files", "d", "s \ufffd"]
    assert made.rows[2]["messages"] == [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    assert made.rows[0]["key"] == blake2b(b"question 1 answer 1", digest_size=16).digest()
    assert made.read == 6
    assert made.dropped == {"no_assistant_turn": {"s": 1, "t": 1}}
    assert made.mended == {"empty_turn_removed": {"d": 1}, "trailing_turn_cut": {"d": 1}}


def test_a_text_has_one_key_in_every_format(tmp_path):
    one = standardise(files(write_jsonl(tmp_path / "a.jsonl", [conversation(1)])), "k", tmp_path / "cache")
    two = standardise(files(write_jsonl(tmp_path / "b.jsonl", [ALPACA])), "k", tmp_path / "cache")
    assert one.rows[0]["key"] == two.rows[0]["key"] == text_key(["question 1 ANSWER 1"])
    assert one.fingerprint != two.fingerprint


def test_a_source_is_cached_until_its_content_or_format_changes(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    file, cache = write_jsonl(tmp_path / "x.jsonl", [conversation(1)]), tmp_path / "cache"
    first = standardise(files(file), "k", cache)
    assert standardise(files(file), "k", cache).fingerprint == first.fingerprint
    assert len(caplog.messages) == 1
    standardise(files(file, format=RowFormat.sharegpt), "k", cache)
    write_jsonl(file, [conversation(2)])
    assert standardise(files(file), "k", cache).rows[0]["messages"][0]["content"] == "question 2"
    assert len(caplog.messages) == 3


def test_the_error_for_a_bad_row_names_it_and_leaves_no_files(tmp_path):
    bad = {"conversations": [turn("humn", "q")]}
    file = write_jsonl(tmp_path / "x.jsonl", [conversation(1), conversation(2), bad])
    with pytest.raises(UserError) as caught:
        standardise(files(file), "data.base", tmp_path / "cache")
    assert str(caught.value).startswith(f"{file}, line 3: unknown role 'humn'; did you mean human? use one of")
    assert list((tmp_path / "cache" / "sources").iterdir()) == []


def _length(source, cache):
    return len(standardise(source, "k", cache).rows)


@pytest.mark.nightly
def test_several_processes_at_once(tmp_path):
    source = files(write_jsonl(tmp_path / "x.jsonl", [conversation(number) for number in range(3000)]))
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        assert pool.starmap(_length, [(source, tmp_path / "cache")] * 3) == [3000] * 3
    assert len(list((tmp_path / "cache" / "sources").iterdir())) == 1
