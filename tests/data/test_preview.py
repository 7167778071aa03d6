from collections.abc import Callable
from io import StringIO
from pathlib import Path

from rich.console import Console, RenderableType

from tests.data.chatml import chatml_tokenizer, turns
from tests.data.conftest import conversation
from tests.data.test_tokens import mix_from
from tometune.data import preview
from tometune.data.mix import Mix
from tometune.data.tokens import tokenise


def shown(renderable: RenderableType) -> str:
    console = Console(file=StringIO(), width=120, color_system=None)
    console.print(renderable)
    assert isinstance(console.file, StringIO)
    return " ".join(console.file.getvalue().split())


def test_the_trained_tokens_are_in_colour(tmp_path: Path) -> None:
    tokenizer = chatml_tokenizer()
    messages = turns("hi [bold]😀", "see [red]é[/red] 漢字😀", "and?", "bye", system="s")
    tokens = tokenise(mix_from([messages]), tokenizer, 512, tmp_path)
    text = preview.row(tokens, tokenizer, 0)
    assert text.plain == tokenizer.apply_chat_template(messages, tokenize=False)
    coloured = [text.plain[span.start : span.end] for span in text.spans if span.style == preview.TRAINED]
    assert coloured == ["see [red]é[/red] 漢字😀<|im_end|>", "bye<|im_end|>"]


def test_the_summary_counts_everything(mix_of: Callable[..., Mix], tmp_path: Path) -> None:
    rows = [conversation(number, source="alpha" if number < 8 else "[beta]") for number in range(10)]
    rows.append({"conversations": [{"from": "human", "value": "unanswered"}], "source": "alpha"})
    pool = [*rows[:3], *(conversation(f"p{number} {'long ' * 60}", source="pool") for number in range(6))]
    mix = mix_of(rows, pool, 14, base_rows=10)
    tokens = tokenise(mix, chatml_tokenizer(), 64, tmp_path / "cache")
    text = shown(preview.summary(mix, tokens))
    counts = tokens.counts
    assert counts.truncated == counts.without_labels == 4
    for part in (
        f"test, seeds.data=0, digest {mix.digest}",
        *("rows │ 14", f"tokens │ {counts.tokens:,}", f"trainable tokens │ {counts.trainable_tokens:,} ("),
        *("cut at max_length │ 4 (28.6%)", f"tokens cut off │ {counts.tokens_cut:,} (", "nothing to train on │ 4"),
        *("alpha │ 8 │ 57.1%", "[beta] │ 2 │ 14.3%", "pool │ 4 │ 28.6%"),
        *("base: 11 rows read, 10 usable, 10 taken", "dropped: no_assistant_turn │ alpha │ 1"),
        *("pool: 9 rows read, 9 usable, 4 taken", "excluded: in_base │ │ 3"),
    ):
        assert part in " ".join(text.replace("│ ", "│ ").split()), part


def test_many_sources_are_summed_up(mix_of: Callable[..., Mix], tmp_path: Path) -> None:
    mix = mix_of([conversation(number, source=f"source{number}") for number in range(20)], None, 20)
    text = shown(preview.summary(mix, tokenise(mix, chatml_tokenizer(), 128, tmp_path / "cache")))
    assert f"{20 - preview.MOST_SOURCES} more" in text
    assert text.count("5.0%") >= preview.MOST_SOURCES
