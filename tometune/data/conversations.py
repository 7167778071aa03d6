"""Odd conversations: one policy for each defect, counted by reason.

Conversations are fixed where possible, because the base must keep its rows. A row is dropped only if nothing is left to
train on.

| defect | policy | counted as |
|---|---|---|
| a turn is empty, null or only white space | removed (not counted for a system turn at the start: formats use it to say "no system text") | `empty_turn_removed` |
| a system turn after the first user turn | removed: templates show one system text, and moving it to the front would reveal later turns | `late_system_turn_removed` |
| assistant turns before the first user turn | removed: they answer nothing | `leading_assistant_removed` |
| tool turns before the first user turn | removed: nothing called the tool | `leading_tool_removed` |
| two turns of the same role in a row | joined with a blank line (tool turns stay separate, one per call) | `same_role_joined` |
| turns after the assistant's last one | removed: nothing answers them | `trailing_turn_cut` |
| a lone surrogate, which UTF-8 cannot encode | replaced by U+FFFD | `broken_character_replaced` |
| a tool turn | kept with role `tool`, never trained on | |
| no assistant turn is left | the row is dropped | `no_assistant_turn` |

Texts are otherwise unchanged, including white space at their ends.
"""  # noqa: E501 -- table rows stay on one line

import json
import re
from collections.abc import Iterable
from typing import Any

from tometune.data.formats import Turn

LEADING = {"assistant": "leading_assistant_removed", "tool": "leading_tool_removed"}
NO_ASSISTANT = "no_assistant_turn"
SURROGATE = re.compile("[\ud800-\udfff]")


def fix_conversation(turns: list[Turn]) -> tuple[list[Turn], set[str]]:
    """Apply the policies above to turns of the roles `system`, `user`, `assistant` and `tool`.

    Returns:
        The fixed turns, ending with the assistant's last one, and the reasons that applied. The turns are empty if the
        row is to be dropped; the only reason is then `no_assistant_turn`.
    """
    reasons: set[str] = set()
    kept: list[Turn] = []
    user_seen = False
    for role, given in turns:
        text = encodable(given)
        if text is not given:
            reasons.add("broken_character_replaced")
        if not text or text.isspace():
            if role != "system" or kept:
                reasons.add("empty_turn_removed")
        elif role == "system" and user_seen:
            reasons.add("late_system_turn_removed")
        elif role in LEADING and not user_seen:
            reasons.add(LEADING[role])
        elif kept and kept[-1][0] == role != "tool":
            reasons.add("same_role_joined")
            kept[-1] = (role, f"{kept[-1][1]}\n\n{text}")
        else:
            kept.append((role, text))
            user_seen = user_seen or role == "user"
    end = max((place for place, (role, _) in enumerate(kept, start=1) if role == "assistant"), default=0)
    if not end:
        return [], {NO_ASSISTANT}
    return kept[:end], reasons if end == len(kept) else reasons | {"trailing_turn_cut"}


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


def full_conversation(messages: list[dict[str, str]], extras: str | None) -> tuple[list[dict[str, Any]], Any]:
    """Return the messages of a row with what they have besides role and content, and the definitions of its tools."""
    if extras is None:
        return messages, None
    found = json.loads(extras)
    turns = found.get("turns", {})
    return [{**message, **turns.get(str(number), {})} for number, message in enumerate(messages)], found.get("tools")
