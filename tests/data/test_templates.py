"""Chat templates, also every one that TRL stores: what is trained is what is asked, and nothing is lost without a note.

`docs/templates.md` shows the results.
"""

import re
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.data.chatml import CHATML, chatml_tokenizer, turns
from tests.fixtures.llama3 import TEMPLATES
from tometune.common.errors import UserError
from tometune.data.encoder import Encoder, verify
from tometune.data.template import Messages, Template
from tometune.evaluation.generation import greedy
from tometune.models.tokenizer import adapt

NAMES = sorted(path.stem for path in TEMPLATES.glob("*.jinja"))
ENDS = (
    *("<eos>", "</s>", "<|end|>", "<|return|>", "<|call|>", "<|eot_id|>", "<|eom_id|>", "<|eot|>", "<end_of_turn>"),
    *("<turn|>", "<|im_end|>", "<|END_OF_TURN_TOKEN|>", "<｜end▁of▁sentence｜>", "<end_of_utterance>", "<|endoftext|>"),
    "<|user|>",  # GLM: the next turn's header ends a turn
)
"""Tokens that end a turn in one of the families."""
END = "|".join(map(re.escape, ENDS))

SYSTEM = {"role": "system", "content": "Keep it short."}
CALL = {"id": "call00001", "type": "function", "function": {"name": "tide", "arguments": {"port": "Brest"}}}
RESULT = {"role": "tool", "content": "high at noon", "name": "tide", "tool_call_id": "call00001"}
PARAMETERS = {"type": "object", "properties": {"port": {"type": "string"}}, "required": ["port"]}
TIDE = {"name": "tide", "description": "Tide times of a port.", "parameters": PARAMETERS}
TOOLS = [{"type": "function", "function": TIDE}]


@cache
def template_of(name: str, thinking: bool) -> Template:
    tokenizer = chatml_tokenizer((TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8"))
    tokenizer.add_special_tokens({"additional_special_tokens": sorted({*ENDS} - {"<|im_end|>", "<|endoftext|>"})})
    tokenizer.chat_template = adapt(tokenizer, thinking)
    return Template(tokenizer)


def exchanges(count: int, system: bool = False, **more: str) -> Messages:
    """Return a conversation with `count` questions and answers."""
    texts = [text for number in range(1, count + 1) for text in (f"Question {number}?", f"Answer {number}.")]
    messages = turns(*texts, system=SYSTEM["content"] if system else None)
    return [turn | (more if turn["role"] == "assistant" else {}) for turn in messages]


def trained(template: Template, messages: Messages) -> list[str]:
    row = template.render([messages])[0]
    return [row.original(*span) for span in row.spans]


@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_trained_is_what_is_asked(name: str, thinking: bool) -> None:
    template = template_of(name, thinking)
    for count in (1, 3):
        for system in (False, True):
            messages = exchanges(count, system)
            row = template.render([messages])[0]
            assert not system or SYSTEM["content"] in row.text
            skipped = "prompt_differs" in row.notes
            assert not skipped or (thinking and not row.spans), "only where the template insists on reasoning"
            if skipped:
                continue
            for number, span in zip(range(count), row.spans, strict=True):
                place = 2 * number + 1 + system
                # The answer as it stands in the text, with the end of its turn.
                shown = re.search(rf"{re.escape(messages[place]['content'])}(\s*({END}))?", row.text)
                asked = {"tokenize": False, "add_generation_prompt": True}
                prompt = template.tokenizer.apply_chat_template(messages[:place], **asked)
                text = row.original(*span)
                assert row.text.startswith(prompt + text)
                assert shown
                assert text.endswith(shown.group())
                assert thinking or text.strip() == shown.group()
                scored = template.prompt(messages[:place], messages[place]["content"]).text
                assert thinking or row.text.startswith(scored)


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
    template, thinking = template_of(name, thinking=False), template_of(name, thinking=True)
    own_prompt = re.search(r"%\}\{\{ (\".*?\") \}\}\{% endif %\}$", template.tokenizer.chat_template)
    caller = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    calls, reasons = [exchanges(1)[0], caller, RESULT, exchanges(1)[1]], exchanges(2, reasoning_content="Because.")

    def words(which: Template, messages: Messages, word: str, tools: Any = None) -> str:
        row = which.render([messages], [tools])[0]
        found = ["trained"] if any(word in row.original(*span) for span in row.spans) else []
        return ", ".join(found + [WORDS[note] for note in row.notes if note in WORDS])

    return (
        "before the user's" if template.render([exchanges(1, system=True)])[0].notes else "own turn",
        "`" + own_prompt[1][1:-1].replace("|", "\\|") + "`" if own_prompt else "as the template says",
        words(template, calls, "Brest", TOOLS),
        "removed" if template.render([exchanges(1)], [TOOLS])[0].notes else "shown",
        words(template, reasons, "Because"),
        words(thinking, reasons, "Because"),
        words(thinking, exchanges(2), "Answer"),
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
    for thinking in (False, True):  # each template with text before a call, several calls, reasoning of earlier turns
        template = template_of(name, thinking)
        encoder = Encoder(template)
        for messages, shown in rows:
            (row,) = template.render([messages], [TOOLS])
            lost = [part for part in shown if part not in row.text]
            assert not lost or {"reasoning_removed", "tools_not_shown", "rejected_by_template"} & {*row.notes}
            assert all(re.sub(END, "", row.original(*span)).strip() for span in row.spans)
            verify(encoder, row, encoder.encode([row])[0], 0)


def test_the_table_in_the_docs_is_up_to_date() -> None:
    assert table() in Path("docs/templates.md").read_text(encoding="utf-8"), "see docs/templates.md for the command"


def test_stand_ins_are_characters_that_the_row_does_not_use() -> None:
    used = "\U00100000\U00100001"
    row = Template(chatml_tokenizer()).render([turns(used, f"{used}<|im_start|><|im_end|>")])[0]
    assert set(row.stand_ins) == {"\U00100002", "\U00100003"}
    assert row.original(*row.spans[0]) == f"{used}<|im_start|><|im_end|><|im_end|>"


def test_a_space_after_the_prompt_is_generated_by_the_model() -> None:
    vicuna = (
        "{% for m in messages %}{{ 'USER: ' + m['content'] + ' ' if m['role'] == 'user' else "
        "'ASSISTANT: ' + m['content'] + '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}"
        "{% endif %}"
    )
    assert trained(Template(chatml_tokenizer(vicuna)), turns("q", "a", "q", "b")) == [" a<|im_end|>", " b<|im_end|>"]


def test_a_template_without_an_end_of_turn() -> None:
    tokenizer = chatml_tokenizer("{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}")
    tokenizer.chat_template = adapt(tokenizer, thinking=False)
    template = Template(tokenizer)
    assert not template.end
    assert Template(chatml_tokenizer()).end
    assert trained(template, turns("q", "a")) == ["a"]
    assert template.prompt(turns("q")).text == "user: q\nassistant: "


def test_rows_that_a_template_rejects_are_noted() -> None:
    strict = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML
    template = Template(chatml_tokenizer(strict))
    good, bad = template.render([turns("q", "a"), turns("q", "a", system="s")])
    assert (len(good.spans), good.notes) == (1, [])
    assert (bad.spans, bad.notes) == ([], ["rejected_by_template"])
    with pytest.raises(UserError, match="cannot render turns of system, user"):
        template.prompt(turns("q", system="s"))
    with pytest.raises(UserError, match="does not show each turn's text once"):
        Template(chatml_tokenizer("{% for m in messages %}{{ m['role'] }}{% endfor %}"))


def test_earlier_answers_that_the_template_changes_are_context() -> None:
    forgets = CHATML.replace(
        "message['content'] +", "(message['content'] if loop.last else message['content'].split('</think>')[-1]) +"
    )
    template = Template(chatml_tokenizer(forgets))
    reasoned = "<think>b</think>c"
    assert trained(template, turns("q", "a", "q", reasoned)) == ["a<|im_end|>", f"{reasoned}<|im_end|>"]
    row = template.render([turns("q", reasoned, "q", "a")])[0]
    assert [row.original(*span) for span in row.spans] == ["a<|im_end|>"]
    assert row.notes == ["reasoning_removed", "prompt_differs"]


def test_the_end_of_a_turn_is_labelled_and_ends_answers_whatever_eos_and_pad_are() -> None:
    tokenizer = chatml_tokenizer()
    tokenizer.eos_token = tokenizer.pad_token = "<|endoftext|>"
    assert trained(Template(tokenizer), turns("q", "a")) == ["a<|im_end|>"]
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=None))
    stops = greedy(model, tokenizer, 4).eos_token_id
    assert tokenizer.convert_ids_to_tokens(stops) == ["<|endoftext|>", "<|im_end|>"]


if __name__ == "__main__":
    print(table())
