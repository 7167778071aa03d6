"""What is done with odd conversations: one policy each, counted by reason.

Mended where possible, since a base must keep its rows; dropped only where nothing is left to train on.

| what is odd | policy | counted as |
|---|---|---|
| a turn that is empty, null or only white space | removed (an empty system turn at the start: not counted, it is how formats say that there is none) | `empty_turn_removed` |
| a system turn after the first user turn | removed: templates show one system text, and put first it would tell of what comes later | `late_system_turn_removed` |
| turns of the assistant before the first user turn | removed: nothing asks for them | `leading_assistant_removed` |
| tool turns before the first user turn | removed: nothing called the tool | `leading_tool_removed` |
| two turns of one role in a row | joined with a blank line between (tool turns stay apart: one a call) | `same_role_joined` |
| turns after the assistant's last one, e.g. a last turn by the user | cut: nothing answers them | `trailing_turn_cut` |
| half a surrogate pair, which no UTF-8 can hold | replaced by U+FFFD | `broken_character_replaced` |
| a tool turn | kept, as role `tool`; never trained on | |
| no turn of the assistant is left, or there was none | the row is dropped | `no_assistant_turn` |

Otherwise texts are not changed, not even white space at their ends.
"""  # noqa: E501 -- a table's row is one line

import re
from collections.abc import Iterable

from tometune.data.formats import Turn

LATE_SYSTEM = "late_system_turn_removed"
EMPTY = "empty_turn_removed"
LEADING = {"assistant": "leading_assistant_removed", "tool": "leading_tool_removed"}
JOINED = "same_role_joined"
TRAILING = "trailing_turn_cut"
BROKEN = "broken_character_replaced"
NO_ASSISTANT = "no_assistant_turn"

SURROGATE = re.compile("[\ud800-\udfff]")


def mend(turns: list[Turn]) -> tuple[list[Turn], set[str]]:
    """Return the conversation by the policies above, and the reasons that applied.

    Args:
        turns: (role, text); roles are `system`, `user`, `assistant`, `tool`.

    Returns:
        The mended turns, ending with the assistant's last; empty if the row is dropped (`no_assistant_turn`).
    """
    reasons: set[str] = set()
    kept: list[Turn] = []
    asked = False  # by a user
    for role, given in turns:
        text = encodable(given)
        if text is not given:
            reasons.add(BROKEN)
        if not text or text.isspace():
            if role != "system" or kept:
                reasons.add(EMPTY)
        elif role == "system" and asked:
            reasons.add(LATE_SYSTEM)
        elif role in LEADING and not asked:
            reasons.add(LEADING[role])
        elif kept and kept[-1][0] == role != "tool":
            reasons.add(JOINED)
            kept[-1] = (role, f"{kept[-1][1]}\n\n{text}")
        else:
            kept.append((role, text))
            asked = asked or role == "user"
    return _answered(kept, reasons)


def _answered(kept: list[Turn], reasons: set[str]) -> tuple[list[Turn], set[str]]:
    """Cut what follows the assistant's last turn."""
    end = len(kept)
    while end and kept[end - 1][0] != "assistant":
        end -= 1
    if not end:
        return [], {NO_ASSISTANT}
    return kept[:end], reasons if end == len(kept) else reasons | {TRAILING}


def encodable(text: str) -> str:
    """Return the text itself, or a copy in which each half of a surrogate pair is U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return SURROGATE.sub("\N{REPLACEMENT CHARACTER}", text)
    return text


def normalised(texts: Iterable[str]) -> str:
    """Return the text by which two conversations are the same: turns joined, white space and case folded.

    Every turn counts, the system's too. Roles and the borders of turns are left out, so the same words are the same
    text in whichever format they came.
    """
    return " ".join(" ".join(texts).split()).casefold()
