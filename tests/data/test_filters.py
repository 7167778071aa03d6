import pyarrow as pa
import pyarrow.compute as pc
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from tometune.common.errors import UserError
from tometune.config.data import FiltersConfig, NearDedupConfig, PoolOrder, ScorerConfig, ScorerKind
from tometune.data import features
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
    with pytest.raises(UserError, match=r"usable rows of 2 \(.* dropped: 0, filtered: 1\), but"):
        pool_of([dropped, kept], take=2, filters=FiltersConfig(**filters))


def test_a_row_counts_under_its_first_reason_and_the_base_is_filtered_only_if_configured(pool_of):
    rows = [chat("a", "b"), chat("I", "I cannot help with that."), chat("q" * 50, "I cannot help with that.")]
    off = FiltersConfig(min_characters=10, refusals=True)
    mix = pool_of([*rows, chat("q" * 50, "fine")], base=rows, filters=off)
    assert mix.facts["pool"]["filtered"] == {"too_few_characters": {"files": 1}, "refusal": {"files": 2}}
    assert mix.facts["base"]["filtered"] == {}
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


def test_near_duplicates_of_the_base_are_dropped(pool_of):
    pool = [near(0, "changed") | {"dataset": "a"}, near(1) | {"dataset": "b"}, near(1, "changed") | {"dataset": "b"}]
    mix = pool_of([*pool, near(2)], base=[near(0)], take=2, near_dedup=NearDedupConfig(threshold=0.8))
    assert mix.facts["pool"]["near_duplicates"] == {"a": 1, "b": 1}
    assert mix.facts["pool"]["eligible"] == 2
    assert {example["source"] for example in mix.parts["pool"].examples["near_duplicates"]} == {"a", "b"}
    with pytest.raises(UserError, match=r"2 usable rows of 4 \(.* dropped: 0, near-duplicates: 2\)"):
        pool_of([*pool, near(2)], base=[near(0)], take=3, near_dedup=NearDedupConfig(threshold=0.8))


def test_near_duplicates_within_the_base_are_dropped_only_if_configured(pool_of):
    base = [near(0), near(0, "changed"), near(1)]
    assert len(pool_of([near(2)], base=base, near_dedup=NearDedupConfig(threshold=0.8)).row_ids) == 4
    mix = pool_of([near(2)], base=base, take=0, near_dedup=NearDedupConfig(threshold=0.8, base=True))
    assert (mix.facts["base"]["filtered"], mix.facts["base"]["near_duplicates"]) == ({}, {"files": 1})
    assert len(mix.parts["base"].examples["near_duplicates"]) == 1
    assert len(mix.row_ids) == 3


def test_a_base_row_counts_even_if_it_is_near_another_base_row(pool_of):
    words = [f"w{n}" for n in range(100)]

    def changed(count):
        return chat(" ".join([*words[: 100 - count], *(f"x{n}" for n in range(count))]), "so")

    base, pool = [changed(0), changed(8)], [changed(16), chat(PROSE, PROSE)]
    near = NearDedupConfig(threshold=0.8)
    facts = pool_of(pool, base=base, near_dedup=near).facts["pool"]
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
