"""Every chat template that TRL stores: what is trained is what is asked. `docs/templates.md` shows the results."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.data.chatml import chatml_tokenizer
from tests.fixtures.llama3 import TEMPLATES
from tometune.data.encoder import Encoder, verify
from tometune.data.template import Template
from tometune.data.template_support import Messages
from tometune.models.tokenizer import adapt

NAMES = sorted(path.stem for path in TEMPLATES.glob("*.jinja"))
ENDS = (
    *("<eos>", "</s>", "<|end|>", "<|return|>", "<|call|>", "<|eot_id|>", "<|eom_id|>", "<|eot|>", "<end_of_turn>"),
    *("<turn|>", "<|im_end|>", "<|END_OF_TURN_TOKEN|>", "<｜end▁of▁sentence｜>", "<end_of_utterance>", "<|endoftext|>"),
    "<|user|>",  # GLM: the next turn's header ends a turn
)
"""Tokens that end a turn in one of the families."""

SYSTEM = {"role": "system", "content": "Keep it short."}
CALL = {"id": "call00001", "type": "function", "function": {"name": "tide", "arguments": {"port": "Brest"}}}
RESULT = {"role": "tool", "content": "high at noon", "name": "tide", "tool_call_id": "call00001"}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "tide",
            "description": "Tide times of a port.",
            "parameters": {"type": "object", "properties": {"port": {"type": "string"}}, "required": ["port"]},
        },
    }
]


def tokenizer_with(name: str, thinking: bool) -> Any:
    tokenizer = chatml_tokenizer((TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8"))
    tokenizer.add_special_tokens({"additional_special_tokens": sorted({*ENDS} - {"<|im_end|>", "<|endoftext|>"})})
    tokenizer.chat_template = adapt(tokenizer, thinking)
    return tokenizer


def exchanges(count: int, system: bool = False, **more: str) -> Messages:
    """Return a conversation with `count` questions and answers."""
    messages: Messages = [SYSTEM] if system else []
    for number in range(1, count + 1):
        messages.append({"role": "user", "content": f"Question {number}?"})
        messages.append({"role": "assistant", "content": f"Answer {number}.", **more})
    return messages


def masked(text: str, messages: Messages) -> list[str]:
    """Return each answer as it stands in a rendered conversation, with the end of its turn. Needs no template."""
    end = "|".join(map(re.escape, ENDS))
    answers = [message["content"] for message in messages if message["role"] == "assistant"]
    found = [re.search(rf"{re.escape(answer)}(\s*({end}))?", text) for answer in answers]
    return [match.group() if match else "" for match in found]


@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_trained_is_what_is_asked(name: str, thinking: bool) -> None:
    tokenizer = tokenizer_with(name, thinking)
    template = Template(tokenizer)
    for count in (1, 2, 3):
        for system in (False, True):
            messages = exchanges(count, system)
            row = template.render([messages])[0]
            assert not system or SYSTEM["content"] in row.text
            skipped = "prompt_differs" in row.notes
            assert not skipped or (thinking and not row.spans), "only where the template insists on reasoning"
            if skipped:
                continue
            for number, (span, expected) in enumerate(zip(row.spans, masked(row.text, messages), strict=True)):
                before = messages[: 2 * number + 1 + system]
                prompt = tokenizer.apply_chat_template(before, tokenize=False, add_generation_prompt=True)
                trained = row.original(*span)
                assert row.text.startswith(prompt + trained)
                assert trained.endswith(expected)
                assert thinking or trained.strip() == expected


WORDS = {
    "reasoning_removed": "removed",
    "tools_not_shown": "row skipped",
    "rejected_by_template": "row skipped",
    "prompt_differs": "some answers skipped",
}
COLUMNS = (
    *("system text", "prompt ends in", "tool calls", "tool definitions", "reasoning", "with `model.thinking=true`"),
    "other answers then",
)


def result(name: str) -> tuple[str, ...]:
    """Return what a template shows, in the words of the table."""
    tokenizer = tokenizer_with(name, thinking=False)
    template, thinking = Template(tokenizer), Template(tokenizer_with(name, thinking=True))
    own_prompt = re.search(r"%\}\{\{ (\".*?\") \}\}\{% endif %\}$", tokenizer.chat_template)
    caller = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    calls, reasons = [exchanges(1)[0], caller, RESULT, exchanges(1)[1]], exchanges(2, reasoning_content="Because.")

    def trained(which: Template, messages: Messages, word: str, tools: Any = None) -> str:
        row = which.render([messages], [tools])[0]
        words = ["trained"] if any(word in row.original(*span) for span in row.spans) else []
        return ", ".join(words + [WORDS[note] for note in row.notes if note in WORDS])

    return (
        "before the user's" if template.render([exchanges(1, system=True)])[0].notes else "own turn",
        "`" + own_prompt[1][1:-1].replace("|", "\\|") + "`" if own_prompt else "as the template says",
        trained(template, calls, "Brest", TOOLS),
        "removed" if template.render([exchanges(1)], [TOOLS])[0].notes else "shown",
        trained(template, reasons, "Because"),
        trained(thinking, reasons, "Because"),
        trained(thinking, exchanges(2), "Answer"),
    )


def table() -> str:
    groups: dict[tuple[str, ...], list[str]] = {}
    for name in NAMES:
        groups.setdefault(result(name), []).append(name)
    rows = [("templates", *COLUMNS), ("---",) * (len(COLUMNS) + 1)]
    rows += [(", ".join(names), *cells) for cells, names in groups.items()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


CALLS = [{**CALL, "id": f"call0000{number}"} for number in (1, 2)]
CALLS[1]["function"] = {"name": "tide", "arguments": {"port": "Sines"}}


@pytest.mark.parametrize("name", [name for name in NAMES if not name.endswith("_training")])
def test_nothing_is_lost_without_a_note(name: str) -> None:
    """Text beside a call, several calls, reasoning of earlier turns, blocks that are not reasoning."""
    question, answer = exchanges(1)

    def said(content: str, **more: Any) -> dict[str, Any]:
        return {"role": "assistant", "content": content, **more}

    rows = [
        ([question, said("I look it up.", tool_calls=[CALL]), RESULT, answer], ["I look it up.", "Brest"]),
        ([question, said("", tool_calls=CALLS), RESULT, RESULT, answer], ["Brest", "Sines"]),
        (exchanges(2, reasoning_content="Because."), ["Because."]),
        ([question, said("Write <think>hm</think> like so.")], ["Write", "hm", "like so."]),
        ([question, said("Because.\n</think>\n\nFour.")], ["Because."]),
        ([question, said("<think>\nBecause.\n</think>")], ["Because."]),
    ]
    for thinking in (False, True):
        template = Template(tokenizer_with(name, thinking))
        encoder = Encoder(template)
        for messages, shown in rows:
            (row,) = template.render([messages], [TOOLS])
            lost = [part for part in shown if part not in row.text]
            assert not lost or {"reasoning_removed", "tools_not_shown", "rejected_by_template"} & {*row.notes}
            trained = [row.original(*span) for span in row.spans]
            assert all(re.sub("|".join(map(re.escape, ENDS)), "", text).strip() for text in trained)
            verify(encoder, row, encoder.encode([row])[0], 0)


def test_the_table_in_the_docs_is_up_to_date() -> None:
    assert table() in Path("docs/templates.md").read_text(encoding="utf-8"), "see docs/templates.md for the command"


if __name__ == "__main__":
    print(table())
