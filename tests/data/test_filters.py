"""Filters, near-duplicates and scores: which rows of a pool stay, and how the others are counted."""

import random

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from tests.data.conftest import conversation, files, write_jsonl
from tometune.common.errors import UserError
from tometune.config.data import FiltersConfig, NearDedupConfig, PoolOrder, ScorerConfig, ScorerKind
from tometune.data import features
from tometune.data.conversations import normalised
from tometune.data.near_duplicates import near_duplicates, runs_of
from tometune.data.standardise import standardise
from tometune.models.pool_scorers import quality_scorer

PROSE = "The harbour was quiet that morning, and the boats lay still while we waited for the tide to turn. "


def chat(*turns, **columns):
    roles = ("human", "gpt")
    return {"conversations": [{"from": roles[n % 2], "value": turn} for n, turn in enumerate(turns)], **columns}


BASE = (chat("base", "base"),)


@pytest.fixture
def pool_of(mix_of):
    """Return a function that builds a mix over a filtered pool, of which it takes `take` rows."""

    def build(rows, base=BASE, take=1, tokenizer=None, order=PoolOrder.random, scorer=None, **options):
        scorer = scorer or ScorerConfig()
        parts = {"tokenizer": tokenizer, "scorer": quality_scorer(scorer)}
        return mix_of(base, rows, len(base) + take, drawn={"order": order}, parts=parts, scorer=scorer, **options)

    return build


@pytest.mark.parametrize(
    ("filters", "kept", "dropped", "reason"),
    [
        ({"min_characters": 12}, chat("12345", "1234567"), chat("12345", "123456"), "too_few_characters"),
        ({"max_characters": 4}, chat("é𝄞", "ab"), chat("é𝄞", "abc"), "too_many_characters"),
        ({"min_turns": 4}, chat("a", "b", "c", "d"), chat("a", "b"), "too_few_turns"),
        ({"max_turns": 3}, chat("a", "b"), chat("a", "b", "c", "d"), "too_many_turns"),
        ({"min_score": 2}, chat("a", "b", score=2), chat("c", "d", score=1.9), "score_too_low"),
        ({"refusals": True}, chat("a", "I can't help but smile."), chat("a", "I can’t help with that."), "refusal"),
        ({"broken_code": True}, chat("a", "```py\nx\n```\nok"), chat("a", "see\n```py\nx\n"), "broken_code"),
        ({"max_repetition": 0.3}, chat("a", PROSE), chat("a", PROSE * 4), "repetition"),
        ({"languages": ["en"]}, chat("a", PROSE), chat("a", "Das Wetter war an diesem Morgen kalt."), "language"),
        ({"languages": ["de"]}, chat("a", "ja"), chat("a", PROSE), "language"),
    ],
)  # fmt: skip
def test_a_filter_counts_dropped_rows_and_keeps_examples(pool_of, filters, kept, dropped, reason):
    kept, dropped = kept | {"dataset": "good"}, dropped | {"dataset": "bad"}
    mix = pool_of([dropped, kept], filters=FiltersConfig(**filters))
    assert mix.facts["pool"]["filtered"] == {reason: {"bad": 1}}
    assert mix.sources == {"files": 1, "good": 1}
    [example] = mix.parts["pool"].examples[reason]
    assert example["source"] == "bad"
    assert example["messages"][-1]["content"] == dropped["conversations"][-1]["value"]
    assert "examples" not in mix.manifest()


def test_a_row_counts_under_its_first_reason_and_the_base_is_filtered_only_if_configured(pool_of):
    rows = [chat("a", "b"), chat("I", "I cannot help with that."), chat("q" * 50, "I cannot help with that.")]
    off = FiltersConfig(min_characters=10, refusals=True)
    mix = pool_of([*rows, chat("q" * 50, "fine")], base=rows, filters=off)
    assert mix.facts["pool"]["filtered"] == {"too_few_characters": {"files": 1}, "refusal": {"files": 2}}
    assert mix.facts["base"]["filtered"] == {}
    with pytest.raises(UserError, match=r"usable rows of 4 \(.* dropped: 0, filtered: 3\), but"):
        pool_of([*rows, chat("q" * 50, "fine")], take=2, filters=off)
    on = FiltersConfig(min_characters=10, refusals=True, base=True)
    mix = pool_of([chat("q" * 50, "fine")], base=[*rows, chat("z" * 50, "fine")], take=-2, filters=on)
    assert mix.facts["base"]["filtered"] == {"too_few_characters": {"files": 1}, "refusal": {"files": 2}}
    assert mix.sources == {"files": 2}
    assert [len(rows) for rows in mix.parts["base"].examples.values()] == [1, 2]
    with pytest.raises(UserError, match=r"data\.base: no row is left .*too_few_characters 1, refusal 2\); relax"):
        pool_of(rows, base=rows, filters=on)


def words_tokenizer(*vocabulary):
    words = Tokenizer(models.WordLevel({word: n for n, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]")


def test_tokens_are_counted_with_the_tokenizer_of_the_model(pool_of):
    tokenizer = words_tokenizer("[UNK]", "[PAD]")
    rows = [chat("one two", "three", dataset="3"), chat("one two", "three four", dataset="4")]
    mix = pool_of(rows, filters=FiltersConfig(max_tokens=3), tokenizer=lambda: tokenizer)
    assert mix.facts["pool"]["filtered"] == {"too_many_tokens": {"4": 1}}


def test_missing_scores(pool_of):
    with pytest.raises(UserError, match=r"min_score=2: none of the 1 rows from files has a score; name its column"):
        pool_of([chat("a", "b", score="high")], filters=FiltersConfig(min_score=2))
    with pytest.raises(UserError, match=r"data\.scorer\.kind=column: no row of the pool has a score"):
        pool_of([chat("a", "b")], order=PoolOrder.best, scorer=ScorerConfig(kind=ScorerKind.column))


@pytest.mark.parametrize(
    ("answer", "refuses"),
    [
        ("As an AI language model, I cannot give medical advice.", True),
        ("I'm sorry, but I can't assist with that request.", True),
        ("I apologize, but I am not able to provide that.", True),
        ("I cannot fulfil this.", True),
        ("I must decline.", True),
        ("Sorry to hear that! Have you tried turning it off?", False),
        ("Unfortunately I could not book that table.", False),
        ("I can help with that.", False),
        ("The model said: as an AI, it is limited.", False),
    ],
)
def test_refusals(answer, refuses):
    found = pc.match_substring_regex(pa.array([answer]), features.REFUSAL, ignore_case=True)
    assert found[0].as_py() is refuses


def test_the_heuristic_prefers_long_varied_finished_answers():
    assert 5 >= features.heuristic_score([PROSE]) > features.heuristic_score(["Yes, it was quiet."]) > 0
    assert features.heuristic_score([PROSE.strip()]) > features.heuristic_score([PROSE.strip(" .")])
    assert features.heuristic_score([PROSE]) > features.heuristic_score([PROSE * 5])
    assert features.heuristic_score(["…"]) == 0


def near(number, changed=""):
    return chat(f"{PROSE * 3} {number} {changed}", " ".join(f"word{number}x{n}" for n in range(40)))


def test_near_duplicates_of_the_base_are_dropped_and_those_within_it_only_if_configured(pool_of):
    pool = [near(0, "changed") | {"dataset": "a"}, near(1) | {"dataset": "b"}, near(1, "changed") | {"dataset": "b"}]
    pool, on = [*pool, near(2)], NearDedupConfig(threshold=0.8)
    mix = pool_of(pool, base=[near(0)], take=2, near_dedup=on)
    assert mix.facts["pool"]["near_duplicates"] == {"a": 1, "b": 1}
    assert mix.facts["pool"]["eligible"] == 2
    assert {example["source"] for example in mix.parts["pool"].examples["near_duplicates"]} == {"a", "b"}
    with pytest.raises(UserError, match=r"2 usable rows of 4 \(.* dropped: 0, near-duplicates: 2\)"):
        pool_of(pool, base=[near(0)], take=3, near_dedup=on)
    base = [near(0), near(0, "changed"), near(1)]
    assert len(pool_of([near(2)], base=base, near_dedup=on).row_ids) == 4
    mix = pool_of([near(2)], base=base, take=0, near_dedup=NearDedupConfig(threshold=0.8, base=True))
    assert (mix.facts["base"]["filtered"], mix.facts["base"]["near_duplicates"]) == ({}, {"files": 1})
    assert (len(mix.parts["base"].examples["near_duplicates"]), len(mix.row_ids)) == (1, 3)


def changed(count):
    return " ".join([*(f"w{n}" for n in range(100 - count)), *(f"x{n}" for n in range(count))])


def test_a_base_row_counts_even_if_it_is_near_another_base_row(pool_of):
    base, pool = [chat(changed(0), "so"), chat(changed(8), "so")], [chat(changed(16), "so"), chat(PROSE, PROSE)]
    facts = pool_of(pool, base=base, near_dedup=NearDedupConfig(threshold=0.8)).facts["pool"]
    assert facts["near_duplicates"] == {"files": 1}


def test_the_near_duplicate_with_the_best_score_stays(pool_of):
    rows = [near(0, f"changed {n}") | {"score": float(n)} for n in range(6)]
    best = {"order": PoolOrder.best, "scorer": ScorerConfig(kind=ScorerKind.column)}
    mix = pool_of([*rows, near(1) | {"score": 0.5}], near_dedup=NearDedupConfig(threshold=0.8), **best)
    assert mix.facts["pool"]["eligible"] == 2
    assert "changed 5" in mix.dataset[1]["messages"][0]["content"]


def test_a_classifier_ranks_the_pool(pool_of, tmp_path, caplog):
    """A real sequence classifier with random weights scores the rows once; then the cache has the scores."""
    tokenizer = words_tokenizer("[UNK]", "[PAD]", "a", "b", "c")
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = BertForSequenceClassification(BertConfig(vocab_size=5, num_labels=1, **shape)).eval()
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    pool = [chat(f"{'a ' * number}", f"b {'c ' * (number % 5)}") for number in range(1, 90)]
    scorer = ScorerConfig(kind=ScorerKind.fineweb_edu, id=str(tmp_path / "model"))
    mix = pool_of(pool, take=10, order=PoolOrder.best, scorer=scorer)
    texts = ["\n\n".join(turn["value"] for turn in row["conversations"]) for row in pool]
    scores = {one: model(**tokenizer(one, return_tensors="pt")).logits.item() for one in texts}
    taken = {"\n\n".join(turn["content"] for turn in messages) for messages in mix.dataset["messages"][1:]}
    assert min(scores[one] for one in taken) >= sorted(scores.values())[-10] - 1e-4
    assert "no GPU found; scoring the pool takes long" in caplog.text
    caplog.clear()
    assert pool_of(pool, take=10, order=PoolOrder.best, scorer=scorer).row_ids == mix.row_ids
    assert caplog.text == ""


def source_of(texts, folder):
    path = write_jsonl(folder / "rows.jsonl", map(conversation, texts))
    return standardise(files(path), "data.pool", folder / "cache")


def similarity(one, other):
    first, second = (set(runs_of(normalised([f"question {text} answer {text}"]))) for text in (one, other))
    return len(first & second) / len(first | second)


def test_precision_and_recall_on_planted_near_duplicates(tmp_path):
    """Each text has a copy in which its last words differ, so that similarities range from 0.5 to 1."""
    generator = random.Random(0)
    texts = [generator.choices([f"w{number}" for number in range(3_000)], k=80) for _ in range(300)]
    copies = [[*text[: 80 - n % 25], *(f"x{n}.{i}" for i in range(n % 25))] for n, text in enumerate(texts) if n % 25]
    originals, copied = [" ".join(text) for text in texts], [" ".join(text) for text in copies]
    source = source_of([*originals, *copied], tmp_path)
    fixed, rows = (source, np.arange(300)), (source, np.arange(300, 300 + len(copied)))
    near, near_fixed = near_duplicates(fixed, rows, 0.8, tmp_path / "cache")
    sources = [text for number, text in enumerate(originals) if number % 25]
    exact = np.array([similarity(one, other) for one, other in zip(sources, copied, strict=True)])
    assert near.tolist() == near_fixed.tolist()
    assert near[exact >= 0.9].all()
    assert not near[exact < 0.7].any()
    both = (near & (exact >= 0.8)).sum()
    assert both >= 0.85 * max((exact >= 0.8).sum(), near.sum())


def test_calls_and_reasoning_make_rows_differ_but_tools_do_not(tmp_path):
    def row(city, reasoning="", tool=""):
        call = {"function": {"name": "weather", "arguments": {"city": city}}}
        answer = {"role": "assistant", "content": "", "reasoning_content": reasoning, "tool_calls": [call]}
        tools = [{"type": "function", "function": {"name": "weather", "description": PROSE + tool, "parameters": {}}}]
        return {"messages": [{"role": "user", "content": "What is the weather there?"}, answer], "tools": tools}

    rows = [row("Rome"), row("Oslo"), row("Rome", PROSE), row("Rome", tool="Fast.")]
    source = standardise(files(write_jsonl(tmp_path / "rows.jsonl", rows)), "data.pool", tmp_path / "cache")
    near, _ = near_duplicates((source, np.array([], int)), (source, np.arange(4)), 0.8, tmp_path / "cache")
    assert near.tolist() == [False, False, False, True]


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0]])
def test_rows_are_compared_only_with_rows_that_stay(tmp_path, order):
    """Row 1 is near rows 0 and 2, which differ: whichever of the two comes first, only row 1 is dropped."""
    texts = [changed(count) for count in (0, 7, 14)]
    assert similarity(texts[0], texts[1]) > 0.8 < similarity(texts[1], texts[2])
    assert similarity(texts[0], texts[2]) < 0.77
    source = source_of(texts, tmp_path)
    near, near_fixed = near_duplicates((source, np.array([], int)), (source, np.array(order)), 0.8, tmp_path / "cache")
    assert [row for row, dropped in zip(order, near, strict=True) if dropped] == [1]
    assert not near_fixed.any()
