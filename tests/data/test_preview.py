from collections.abc import Callable
from io import StringIO
from pathlib import Path

from rich.console import Console, RenderableType

from tests.data.chatml import chatml_tokenizer, turns
from tests.data.conftest import conversation
from tests.data.tokenised import mix_from
from tometune.data import preview
from tometune.data.mix import Mix
from tometune.data.tokens import tokenise


def shown(renderable: RenderableType) -> str:
    console = Console(file=StringIO(), width=120, color_system=None)
    console.print(renderable)
    assert isinstance(console.file, StringIO)
    return " ".join(console.file.getvalue().split())


def test_trained_tokens_are_highlighted(tmp_path: Path) -> None:
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


def test_the_summary_counts_everything(mix_of: Callable[..., Mix], tmp_path: Path) -> None:
    rows = [conversation(number, source="alpha" if number < 8 else "[beta]") for number in range(10)]
    rows.append({"conversations": [{"from": "human", "value": "unanswered"}], "source": "alpha", "lang": "en"})
    rows[0]["topic"] = rows[1]["topic"] = rows[8]["topic"] = "x"
    rows.append({"conversations": 7, "source": "alpha"})
    pool = [
        *rows[:3],
        rows[0],
        conversation("p1 " + "long " * 60, source="pool"),
        *(conversation(f"p{number} {'long ' * 60}", source="pool") for number in range(6)),
    ]
    mix = mix_of(rows, pool, 14, base_rows=10)
    tokens = tokenise(mix, chatml_tokenizer(), 64, tmp_path / "cache")
    text = shown(preview.summary(mix, tokens, 64))
    counts = tokens.counts
    assert counts.truncated == counts.without_labels == 4
    for part in (
        f"test: 14 rows, seeds.data=0, digest {mix.digest}",
        *(" rows 14 ", f" tokens {counts.tokens:,} ", f"(answers and their ends) {counts.trainable_tokens:,} "),
        *(
            "truncated at trainer.max_length=64 4 28.6%",
            f"tokens cut off {counts.tokens_cut:,} ",
            "left after that 4 28.6%",
        ),
        *("alpha 8 57.1%", "[beta] 2 14.3%", "pool 4 28.6%"),
        *("read 12 11 ", "dropped: no_assistant_turn 1 ", "usable 10 11 ", "taken 10 4"),
        *("− cannot be read: not_a_list_of_turns 1", "cannot be read: not_a_list_of_turns base alpha 1"),
        " base alpha topic 2, lang 1 pool alpha topic 3 ",
        *("text is in the base 4 ", "in an earlier row of the pool 2 ", "+ both, so subtracted twice 1 "),
        "left to draw from 6 ",
        "dropped: no_assistant_turn base alpha 1",
        "base [beta] topic 1",
    ):
        assert part in text, part


def test_the_steps_add_up(mix_of: Callable[..., Mix]) -> None:
    odd = [{"conversations": []}, {"conversations": [*conversation(0)["conversations"], None]}]
    base = [*map(conversation, range(5)), odd[0]]
    pool = [*map(conversation, [3, 3, 4, 5, 5, 6]), *odd]
    mix = mix_of(base, pool, 6)
    left, numbers = 0, {}
    for (_, name), number in sorted(preview._steps(mix.facts["pool"]).items()):
        numbers[name] = number
        if name[0] in "−+":
            left += number if name[0] == "+" else -number
        elif name in ("usable", "left to draw from"):
            assert number == left, name
        elif name == "read":
            left = number
    assert numbers["left to draw from"] == 2
    assert numbers["taken"] == 1
    assert numbers["  of them fixed: empty_turn_removed"] == 1
    more = mix.facts["pool"] | {"filtered": {"refusal": {"a": 1}}, "contaminated_rows": 2, "near_duplicates": {"a": 3}}
    steps = {name: number for (_, name), number in preview._steps(more).items()}
    assert steps["− filtered: refusal"] == 1
    assert steps["− shares words with the evaluation"] == 2
    assert steps["− near-duplicate of a row that stays"] == 3


def test_the_summary_fits_80_columns(mix_of: Callable[..., Mix], tmp_path: Path) -> None:
    pool = [*map(conversation, range(3)), *(conversation(f"p{n}", source="a/very-long name\n" * 20) for n in range(9))]
    pool.append({"conversations": [{"from": "gpt", "value": "first"}, *conversation(99)["conversations"]]})
    mix = mix_of([conversation(number, source=f"source{number}") for number in range(20)], pool, 22)
    tokens = tokenise(mix, chatml_tokenizer(), 2048, tmp_path / "cache")
    console = Console(file=StringIO(), width=80, color_system=None)
    console.print(preview.summary(mix, tokens, 2048))
    assert isinstance(console.file, StringIO)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert " rows truncated at trainer.max_length=2048                   0    0.0%" in "\n".join(lines)
    assert {"size", "from rows read to rows taken", "sources", "dropped and fixed rows by source"} <= set(
        map(str.strip, lines)
    )
    assert any(line.startswith(" fixed: leading_assistant_removed   pool   files") for line in lines)
    assert any(f" {len(mix.sources) - preview.MOST_SOURCES} more " in line for line in lines)
