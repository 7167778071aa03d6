"""What `prepare` shows of a mix, compared with plain Python."""

import numpy as np

from tests.data.chatml import chatml_tokenizer, turns
from tests.data.conftest import conversation, mix_from
from tometune.config.data import PoolOrder, ScorerConfig, ScorerKind
from tometune.data import preview
from tometune.data.preview import profile, repeats, samples
from tometune.data.tokens import tokenise


def test_trained_tokens_are_highlighted(tmp_path):
    tokenizer = chatml_tokenizer()
    messages = turns("hi [bold]😀", "see [red]é[/red] 漢字😀", "and?", "bye", system="s")
    tokens = tokenise(mix_from([messages]), tokenizer, 512, tmp_path)
    text = preview.row(tokens, tokenizer, 0)
    assert text.plain == tokenizer.apply_chat_template(messages, tokenize=False)
    coloured = [text.plain[span.start : span.end] for span in text.spans if span.style == preview.TRAINED]
    assert coloured == ["see [red]é[/red] 漢字😀<|im_end|>", "bye<|im_end|>"]
    marked = preview.row(tokens, tokenizer, 0, preview.MARKS).plain
    assert [part.partition("⟧")[0] for part in marked.split("⟦")[1:]] == coloured
    assert marked.replace("⟦", "").replace("⟧", "") == text.plain


def test_each_row_is_measured(mix_of, tmp_path):
    long = conversation("long " * 90, source="alpha")
    system = {"conversations": [{"from": "system", "value": "be kind"}, *conversation(5)["conversations"] * 2]}
    base = [*(conversation(n, source="alpha") for n in range(6)), conversation(0, source="alpha"), system, long]
    mix = mix_of(base, [conversation(f"p{n} é漢字", dataset="beta") for n in range(9)], 15, base_rows=9)
    tokens = tokenise(mix, chatml_tokenizer(), 64, tmp_path / "cache")
    values, rows = profile(mix, tokens, tmp_path / "cache"), list(mix.dataset)
    assert values["source"].tolist() == [entry["source"] for entry in rows]
    assert values["source"].cat.categories[:2].tolist() == ["alpha", "beta"]
    sizes = [sum(len(turn["content"]) for turn in entry["messages"]) for entry in rows]
    assert values["characters"].tolist() == sizes
    assert values["turns"].tolist() == [sum(turn["role"] != "system" for turn in e["messages"]) for e in rows]
    assert values["pool"].tolist() == [False] * 9 + [True] * 6
    kept = [len(entry["input_ids"]) for entry in tokens.dataset]
    kept.insert(sizes.index(max(sizes)), 0)  # of the long one no answer is left
    assert values["tokens"].tolist() == kept
    assert repeats(values) == {"alpha": 1}
    assert values["score"].isna().all()


def test_samples_are_drawn_with_the_seed(mix_of):
    mix = mix_of([conversation(number) for number in range(40)], None, 40)
    drawn = samples(mix)
    assert drawn == samples(mix)
    assert len({entry["row_id"] for entry in drawn}) == 10
    assert all(mix.row_ids[entry["number"]] == entry["row_id"] for entry in drawn)


def test_scores_are_those_of_the_column_or_of_the_scorer(mix_of):
    base = [conversation(number) for number in range(3)]
    pool = [conversation(f"p{number} " * number, score=number / 2) for number in range(1, 9)]

    def scores(order, kind):
        mix = mix_of(base, pool, 7, drawn={"order": order}, scorer=ScorerConfig(kind=kind))
        assert mix.scores is not None
        counts = [messages[0]["content"].count("p") for messages in mix.dataset["messages"][3:]]
        assert kind is ScorerKind.heuristic or mix.scores[3:].tolist() == [count / 2 for count in counts]
        return mix.scores

    assert np.isnan(scores(PoolOrder.random, ScorerKind.column)[:3]).all()
    assert scores(PoolOrder.best, ScorerKind.column)[3:].tolist() == [4.0, 3.5, 3.0, 2.5]
    ranked = scores(PoolOrder.best, ScorerKind.heuristic)
    assert not np.isnan(ranked).any()
    assert (np.diff(ranked[3:]) <= 0).all()
