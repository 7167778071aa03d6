"""What a chat template can show apart from texts: reasoning, tool calls and definitions. Found by rendering probes."""

import json
import re
from collections.abc import Callable
from copy import deepcopy
from functools import cached_property
from typing import Any

Messages = list[dict[str, Any]]
Tools = list[dict[str, Any]] | None
Render = Callable[..., str | None]  # (messages, tools=None, prompt=False) -> text, or None if the template rejects them

# Reasoning at the start of an answer; some models write only the end of the block.
THINKING = re.compile(r"\A\s*(?:<think>)?(?:(?!<think>).)*?</think>\s*", re.DOTALL)
TAGS = re.compile(r"</?think>")
USER = {"role": "user", "content": "tm0user"}
ANSWER = {"role": "assistant", "content": "tm0answer"}
REASONING = "tm0reasoning"
REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")  # of different templates


class TemplateSupport:
    """Removes from conversations what a template cannot show."""

    def __init__(self, render: Render) -> None:
        self._render = render

    def fit(self, messages: Messages, tools: Tools) -> tuple[Messages, Tools, list[str]] | str:
        """Return the messages and tools as the template takes them, and notes; or the note of a row it cannot show.

        The keys of messages are `role`, `content` and possibly `reasoning_content`, `tool_calls` and `trained`; notes
        are keys of `tometune.data.template.NOTES`.
        """
        notes = set()
        fitted = []
        for message in messages:
            fitted.append(message := dict(message))
            reasoning = message.pop("reasoning_content", None)
            if reasoning and self.reasoning_key:
                message[self.reasoning_key] = reasoning
            elif reasoning:
                notes.add("reasoning_removed")
            if message["role"] == "assistant" and not self.shows_think_blocks and THINKING.match(message["content"]):
                message["content"] = THINKING.sub("", message["content"])
                notes.add("reasoning_removed")
                if not message["content"] and not message.get("tool_calls"):
                    message["trained"] = False
            if message.get("tool_calls"):
                if self.arguments is None:
                    return "tools_not_shown"
                calls = deepcopy(message["tool_calls"])
                for function in (call["function"] for call in calls if self.arguments is str):
                    function["arguments"] = json.dumps(function["arguments"], ensure_ascii=False)
                message["tool_calls"] = calls
        if tools and not self.shows_definitions:
            tools = None
            notes.add("tool_definitions_removed")
        return fitted, tools, sorted(notes)

    @cached_property
    def reasoning_key(self) -> str | None:
        """The key of an answer's reasoning, if the template shows it after the answer's prompt; else None."""
        return next((key for key in REASONING_KEYS if self._shows_reasoning({key: REASONING})), None)

    @cached_property
    def shows_think_blocks(self) -> bool:
        """Whether a `<think>` block at the start of a text is shown, after the answer's prompt."""
        return self._shows_reasoning({"content": f"<think>\n{REASONING}\n</think>\n\ntm0answer"})

    def _shows_reasoning(self, keys: dict[str, str]) -> bool:
        """Whether an answer with these keys is shown with its reasoning, after its prompt."""
        prompt = self._render([USER], prompt=True) or ""
        text = self._render([USER, ANSWER | keys]) or ""
        return text.startswith(prompt) and REASONING in text[len(prompt) :]

    @cached_property
    def arguments(self) -> type | None:
        """The type of a call's arguments, dict or str, if the template shows calls and results; else None."""
        for given in ({"place": "tm0argument"}, '{"place": "tm0argument"}'):
            call = {"id": "call00001", "type": "function", "function": {"name": "tm0function", "arguments": given}}
            result = {"role": "tool", "content": "tm0result", "name": "tm0function", "tool_call_id": "call00001"}
            calls = {"role": "assistant", "content": "", "tool_calls": [call]}
            text = self._render([USER, calls, result, ANSWER]) or ""
            if all(word in text for word in ("tm0function", "tm0argument", "tm0result", "tm0answer")):
                return type(given)
        return None

    @cached_property
    def shows_definitions(self) -> bool:
        """Whether the template shows which tools there are."""
        parameters = {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]}
        function = {"name": "tm0function", "description": "tm0tool", "parameters": parameters}
        return "tm0function" in (self._render([USER, ANSWER], [{"type": "function", "function": function}]) or "")


def not_shown(text: str, messages: Messages) -> str | None:
    """Return the note of a conversation of which a rendered text lacks a part; None if it shows all of it."""
    lost = None
    for message in messages:
        calls = message.get("tool_calls", ())
        values = [value for call in calls for value in leaves(call["function"])]
        block = THINKING.match(message["content"]) if message["role"] == "assistant" else None
        answer = message["content"][block.end() :] if block else message["content"]
        if not all(_shows(text, part) for part in [*TAGS.split(answer), *values]):
            return "tools_not_shown" if calls or message["role"] == "tool" else "rejected_by_template"
        reasoning = [message.get(key, "") for key in REASONING_KEYS] + TAGS.split(block.group() if block else "")
        lost = lost if all(_shows(text, part) for part in reasoning) else "reasoning_removed"
    return lost


def _shows(text: str, part: str) -> bool:
    """Tell whether a text shows another one, possibly as JSON."""
    part = part.strip()
    return part in text or any(json.dumps(part, ensure_ascii=ascii_)[1:-1] in text for ascii_ in (False, True))


def leaves(value: Any) -> list[str]:
    """Return the texts and numbers in a nested value."""
    if isinstance(value, dict | list):
        return [leaf for entry in (value.values() if isinstance(value, dict) else value) for leaf in leaves(entry)]
    return [value] if isinstance(value, str) else [str(value)] if type(value) in (int, float) else []
