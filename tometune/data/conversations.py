"""Odd conversations: one policy for each defect, counted by reason.

Conversations are fixed where possible, because the base must keep its rows. A row is dropped only if nothing is left to
train on. docs/data.md lists the defects, their policies and their reasons.

A standardised row has `messages`, a list of role and content, and `extras`: null for most rows, else JSON with what
else it holds, `{"tools": […], "turns": {"3": {"reasoning": "…", "tool_calls": […], "trained": false}}}`. The keys of
`turns` are indices of messages; a tool's turn may have `name` and `tool_call_id`. `full_messages` puts both together.
"""

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from tometune.data.turns import Turn

LEADING = {"assistant": "leading_assistant_removed", "tool": "leading_tool_removed"}
NO_ASSISTANT, NO_TRAINED = "no_assistant_turn", "no_trained_turn"
SURROGATE = re.compile("[\ud800-\udfff]")


def fix_conversation(turns: list[Turn]) -> tuple[list[Turn], set[str]]:
    """Apply the policies to turns of the roles `system`, `user`, `assistant` and `tool`.

    Returns:
        The fixed turns, ending with the assistant's last one, and the reasons that applied. The turns are empty if the
        row is to be dropped; the only reason is then `no_assistant_turn` or `no_trained_turn`.
    """
    reasons: set[str] = set()
    kept: list[Turn] = []
    user_seen = False
    for turn in turns:
        role, text = turn.role, encodable(turn.text)
        extra = turn.extra and json.loads(encodable(json.dumps(turn.extra, ensure_ascii=False)))
        if (text, extra) != turn[1:]:
            turn = Turn(role, text, extra)
            reasons.add("broken_character_replaced")
        if not turn.text.strip() and not (turn.extra and "tool_calls" in turn.extra):
            if turn.extra and "reasoning" in turn.extra:
                reasons.add("reasoning_without_answer_removed")
            elif role != "system" or kept:
                reasons.add("empty_turn_removed")
        elif role == "system" and user_seen:
            reasons.add("late_system_turn_removed")
        elif role in LEADING and not user_seen:
            reasons.add(LEADING[role])
        elif kept and kept[-1].role == role != "tool" and (joined := _joined(kept[-1], turn)):
            reasons.add("same_role_joined")
            kept[-1] = joined
        else:
            kept.append(turn)
            user_seen = user_seen or role == "user"
    end = max((place for place, turn in enumerate(kept, start=1) if turn.role == "assistant"), default=0)
    if not any(turn.role == "assistant" and is_trained(turn) for turn in kept):
        return [], {NO_TRAINED if end else NO_ASSISTANT}
    return kept[:end], reasons if end == len(kept) else reasons | {"trailing_turn_cut"}


def is_trained(turn: Turn) -> bool:
    """Return whether an assistant's turn is trained on."""
    return turn.extra is None or turn.extra.get("trained", True)


def _joined(before: Turn, after: Turn) -> Turn | None:
    """Join two turns of one role; None if that would change their order (reasoning, text, calls) or what is trained."""
    first, second = before.extra or {}, after.extra or {}
    text = "\n\n".join(text for text in (before.text, after.text) if text)
    if not first and not second:
        return Turn(before.role, text)
    late = "reasoning" in second or ("tool_calls" in first and after.text)
    if late or is_trained(before) != is_trained(after):
        return None
    calls = [*first.get("tool_calls", ()), *second.get("tool_calls", ())]
    return Turn(before.role, text, {**first, **second, **({"tool_calls": calls} if calls else {})} or None)


def extras_of(turns: list[Turn], tools: list[dict[str, Any]] | None) -> str | None:
    """Return the `extras` of a row, described above; None for an ordinary row."""
    more = {str(index): turn.extra for index, turn in enumerate(turns) if turn.extra}
    if not more and not tools:
        return None
    return json.dumps({**({"tools": tools} if tools else {}), **({"turns": more} if more else {})}, ensure_ascii=False)


def full_messages(
    messages: list[dict[str, Any]], extras: str | None
) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
    """Return a row's messages with everything that a chat template may read, and its tools.

    A message has `role` and `content`, and where they exist `reasoning_content`, `tool_calls` (in OpenAI's shape, with
    the arguments as an object), `name`, `tool_call_id`, and `trained`, which is false for answers that are context.
    """
    if extras is None:
        return messages, None
    found = json.loads(extras)
    full: list[dict[str, Any]] = [{**message} for message in messages]
    for index, extra in found.get("turns", {}).items():
        full[int(index)] |= {"reasoning_content" if key == "reasoning" else key: value for key, value in extra.items()}
    return full, found.get("tools")


def compared_texts(turns: list[Turn], tools: list[dict[str, Any]] | None) -> Iterator[str]:
    """Yield the texts by which a conversation is compared with others: also reasoning, tool calls and tools."""
    for turn in turns:
        yield turn.text
        if turn.extra:
            yield turn.extra.get("reasoning", "")
            yield from (json.dumps(call["function"], sort_keys=True) for call in turn.extra.get("tool_calls", ()))
    if tools:
        yield json.dumps(tools, sort_keys=True)


def texts_of(messages: list[dict[str, Any]], extras: str | None) -> tuple[list[str], list[str]]:
    """Return the texts of a standardised row: contents, then reasoning and tool calls; and those of its tools."""
    contents = [message["content"] for message in messages]
    if extras is None:
        return contents, []
    found = json.loads(extras)
    turns = found.get("turns", {}).values()
    more = [[turn.get("reasoning", ""), [call["function"] for call in turn.get("tool_calls", ())]] for turn in turns]
    return [*contents, *_values_in(more)], [*_values_in(found.get("tools", []))]


def _values_in(value: Any) -> Iterator[str]:
    if isinstance(value, dict | list):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from _values_in(entry)
    else:
        yield str(value)


def encodable(text: str) -> str:
    """Return the text itself, or a copy in which each lone surrogate is U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return SURROGATE.sub("\N{REPLACEMENT CHARACTER}", text)
    return text


def normalised(texts: Iterable[str]) -> str:
    """Return the text by which conversations are compared: turns joined, white space collapsed, case folded.

    Every turn counts, including the system's. Roles and turn borders are ignored, so the format does not matter.
    """
    return " ".join(" ".join(texts).split()).casefold()
