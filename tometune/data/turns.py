"""Turns, and the values of a row that become them: texts, lists of parts, tool calls, weights, transcripts."""

import json
import math
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tometune.common.errors import some

# Keys of a turn.
ROLE_KEYS, TEXT_KEYS = ("from", "role"), ("value", "content", "text")
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
CALL_KEYS = ("tool_calls", "function_call")
WEIGHT_KEYS = ("weight", "train", "loss", "loss_weight")
TOOL_TURN_KEYS = ("name", "tool_call_id")  # some templates show them
ARGUMENT_KEYS = ("arguments", "parameters", "args", "input")  # of a tool call
CALL_OTHERS = ("id", "type", "index", "function", "name")
TRUTHS = {"0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}

# Columns, keys of turns and types of parts that hold something other than text.
MEDIA = {
    name: f"{kind}_not_read"
    for kind in ("image", "audio", "video")
    for name in (kind, f"{kind}s", f"{kind}_url", f"input_{kind}")
}
TEXT_PARTS, PART_KEYS = ("text", "input_text", "output_text"), ("text", "content", "value")

# How conversations are written as one text: what begins a turn, with its role. The first that begins the text counts.
CHATML = re.compile(r"\n*<\|im_start\|>(\w+)\n")
SPEAKERS = dict.fromkeys(("human", "user"), "user") | dict.fromkeys(("assistant", "bot", "ai", "gpt"), "assistant")
SPEAKERS |= {"system": "system", "function response": "tool"}
TRANSCRIPTS = (
    CHATML,
    re.compile(rf"\n*###\s?({'|'.join(SPEAKERS)}):", re.IGNORECASE),
    re.compile(rf"\n\s*({'|'.join(SPEAKERS)}):", re.IGNORECASE),
)
# A question and its answer on one line, as Vicuna's template writes them; `</s>` ends each.
ONE_LINE = re.compile(r"\s*USER:(.*?)\sASSISTANT:(.*)", re.DOTALL)
END_MARK = r"<(?:\|(?:im_end|endoftext)\|>|/s>)\s*"
END_MARKS = re.compile(rf"{END_MARK}(?:{END_MARK})*\Z")

# Limits of what an error lists: a table can have thousands of columns with any names.
MOST_NAMES, LONGEST_NAME = 30, 60


class Turn(NamedTuple):
    """A turn with a standard role. Most have no `extra`."""

    role: str
    text: str
    # What else it holds: `reasoning`, `tool_calls`, `trained` (only if false), and `name` and `tool_call_id` of a tool.
    extra: dict[str, Any] | None = None


@dataclass(slots=True)
class Conversation:
    """What was read from a row."""

    turns: list[Turn] = field(default_factory=list)
    tools: list[dict[str, Any]] | None = None
    read: set[str] = field(default_factory=set)  # columns that were used
    unread: set[str] = field(default_factory=set)  # other columns with content, and keys of turns as `turn.KEY`
    dropped: str | None = None  # the reason if the row is not used on purpose, e.g. `image_not_read`


class FormatError(ValueError):
    """A row that cannot be read: a short name to count it by, and a message that says how to fix it."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)  # with these arguments it is pickled
        self.reason, self.message = reason, message

    def __str__(self) -> str:
        return self.message


def extra_of(role: str, turn: dict[str, Any], read: set[str | None], found: Conversation) -> dict[str, Any]:
    """Return what a turn holds beyond role and text, and note the keys that are not read."""
    extra: dict[str, Any] = {}
    for key, value in turn.items():
        if key in read or is_empty(value):
            continue
        trained = trained_by(key, value) if key in WEIGHT_KEYS else None
        if role == "assistant" and trained is not None:
            extra |= {} if trained else {"trained": False}
        elif role == "assistant" and key in REASONING_KEYS and "reasoning" not in extra:
            extra["reasoning"] = text_of(value, found)
        elif role == "assistant" and key in CALL_KEYS and "tool_calls" not in extra:
            extra["tool_calls"] = calls_of(value, found)
        elif role == "tool" and key in TOOL_TURN_KEYS:
            extra[key] = value
        elif trained is not False:  # other turns are never trained
            not_read(f"turn.{key}", key, value, found)
    return extra


def not_read(shown: str, name: str, value: Any, found: Conversation) -> None:
    """Note a value that is not read, and that the row is dropped if it is an image, audio or video."""
    if name not in MEDIA or value:  # `image: false` says that there is none
        found.unread.add(shown)
        found.dropped = MEDIA.get(name, found.dropped)


def first_filled(row: dict[str, Any], names: Iterable[str]) -> str | None:
    """Return the first of these columns that has content."""
    return next((name for name in names if not is_empty(row.get(name))), None)


def is_empty(value: Any) -> bool:
    """Return whether a value is null, an empty text or object, a list without content, or NaN (pandas' null)."""
    if type(value) is list:
        return all(entry is None for entry in value)
    return value is None or value == "" or value == {} or (type(value) is float and math.isnan(value))


def truth_of(value: Any) -> bool | None:
    """Return what a value says that may be true, false, 1 or 0, also as text; None for any other value."""
    return TRUTHS.get(str(value).strip().lower()) if isinstance(value, bool | int | float | str) else None


def number_of(value: Any) -> float:
    """Return a number, also if it is written as text; NaN for any other value."""
    with suppress(ValueError, OverflowError):
        return float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    return math.nan


def entries_of(value: Any) -> list[Any] | None:
    """Return the entries of a list of turns, or of a text that holds one; None if there are none."""
    if isinstance(value, list):
        return value if any(value) else None
    if not isinstance(value, str):
        return None
    text = value.strip()
    if text[:1] == "[":
        with suppress(ValueError, RecursionError):
            return entries_of(json.loads(text))
    lines = f"\n{text}"  # every mark then follows a line break
    style = next((style for style in TRANSCRIPTS if style.match(lines)), None)
    return (_transcript(lines, style) if style else None) or _one_line_transcript(text)


def _transcript(text: str, style: re.Pattern[str]) -> list[Any] | None:
    """Split a text at the marks of its turns; None if the assistant says nothing.

    A text may quote other marks. So a speaker's marks have one spelling, and no fewer line breaks before them than its
    first one after the start; and the system speaks only at the start.
    """
    marks: list[re.Match[str]] = []
    names: dict[str, str] = {}
    gaps: dict[str, int] = {}
    for mark in style.finditer(text):
        name, gap = mark[1], mark[0].count("\n")
        speaker = SPEAKERS.get(name.lower(), name)
        other = speaker == "system" or names.get(speaker, name) != name
        if marks and style is not CHATML and (other or gap < gaps.setdefault(speaker, gap)):
            continue
        names[speaker] = name
        marks.append(mark)
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    turns = [(mark[1], text[mark.end() : end]) for mark, end in zip(marks, ends, strict=True)]
    said = [{"role": role, "content": END_MARKS.sub("", content).strip()} for role, content in turns]
    return said if "assistant" in names else None


def _one_line_transcript(text: str) -> list[Any] | None:
    """Split `SYSTEM USER: … ASSISTANT: …</s>USER: … ASSISTANT: …</s>`; None for any other text."""
    system, mark, rest = text.partition("USER:")
    *pieces, end = f"{mark}{rest}".split("</s>")
    pairs = [ONE_LINE.fullmatch(piece) for piece in pieces]
    if end or not pairs or not all(pairs):
        return None
    said = [("system", system.removeprefix("SYSTEM:"))] if system else []
    said += [turn for pair in pairs if pair for turn in zip(("user", "assistant"), pair.groups(), strict=True)]
    return [{"role": role, "content": content.strip()} for role, content in said]


def is_turn(entry: Any) -> bool:
    """Return whether a value is an object with a role."""
    return isinstance(entry, dict) and not {*ROLE_KEYS}.isdisjoint(entry)


def is_parts(value: Any) -> bool:
    """Return whether a value is a text in parts, `[{"type": "text", "text": …}, …]`."""
    return isinstance(value, list) and all(isinstance(part, dict) and "type" in part for part in value)


def text_of(value: Any, found: Conversation) -> str:
    """Return a text: a string, a number, or the texts in a list of parts."""
    if isinstance(value, str):
        return value
    if is_empty(value):
        return ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if not is_parts(value):
        raise FormatError("not_a_text", f"a turn's text is of type {type(value).__name__}; make it text")
    texts = []
    for part in value:
        kind = str(part["type"] or "text")
        filled = [key for key, value in part.items() if key != "type" and not is_empty(value)]
        key = next((key for key in PART_KEYS if key in filled), None)
        if kind in MEDIA:
            found.dropped = MEDIA[kind]
        elif kind in TEXT_PARTS and (isinstance(part[key], str) if key else not filled):
            texts.append(part[key] if key else "")
            for other in filled:
                if other != key:
                    not_read(f"turn.part.{other}", other, part[other], found)
        else:
            wrong = f"a part of a turn is of type {shortened(kind)!r}"
            raise FormatError("unknown_part", f"{wrong}; make it text, or drop the row")
    return "".join(texts)


def trained_by(key: str, value: Any) -> bool | None:
    """Return whether a turn is trained; None for a share, which cannot be honoured and counts as not read."""
    trained = truth_of(value)
    if trained is None and not number_of(value) >= 0:
        raise FormatError("bad_weight", f"a turn's {key} is {shortened(str(value))!r}; make it 0 or 1")
    return trained


def as_json(value: Any) -> str:
    """Return JSON; parquet files may hold dates and bytes, which it has no form for."""
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise FormatError("no_json_value", f"tools or a tool's turn cannot be JSON ({error}); make it text") from None


def calls_of(value: Any, found: Conversation) -> list[dict[str, Any]]:
    """Return tool calls in one shape, `{type, function: {name, arguments}}` with the arguments as an object."""
    calls = []
    unread: set[str] = set()
    for call in objects_of(value) or ():
        function = call.get("function", call)
        name = function.get("name") if isinstance(function, dict) else None
        key = first_filled(function, ARGUMENT_KEYS) if name else None
        arguments = function[key] if key else None
        if isinstance(arguments, str) and arguments.strip():
            with suppress(ValueError, RecursionError):
                arguments = json.loads(arguments)
        arguments = {} if is_empty(arguments) else arguments
        if not isinstance(name, str) or not isinstance(arguments, dict):
            break
        others = {**call, **function}.items()
        unread |= {other for other, given in others if given and other not in (*CALL_OTHERS, key)}
        identity = {"id": call["id"]} if call.get("id") else {}
        calls.append({**identity, "type": "function", "function": {"name": name, "arguments": arguments}})
    else:
        if calls:
            found.unread.update(f"turn.tool_calls.{name}" for name in unread)
            return calls
    fix = "make it {function: {name, arguments}} with the arguments as an object or as JSON"
    raise FormatError("bad_tool_call", f"a tool call cannot be read; {fix}")


def tools_of(value: Any) -> list[dict[str, Any]] | None:
    """Return tools in one shape, `{type, function}`; None if they cannot be read."""
    tools = objects_of(value)
    shaped = [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools or ()]
    named = all(isinstance(tool["function"], dict) and "name" in tool["function"] for tool in shaped)
    return shaped if tools is not None and named else None


def objects_of(value: Any) -> list[dict[str, Any]] | None:
    """Return the objects of a list, which may be JSON, as may its entries; None if it holds anything else."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    objects: list[Any] = []
    for entry in value if isinstance(value, list) else [value]:
        parsed = objects_of(entry) if isinstance(entry, str) else [entry]
        if parsed is None:
            return None
        objects += parsed
    return objects if all(isinstance(entry, dict) for entry in objects) else None


def listed(names: Iterable[str]) -> str:
    """List column or key names in one short line, whatever they contain."""
    return some((shortened(name) if name.isprintable() else repr(shortened(name)) for name in names), MOST_NAMES)


def shortened(text: str) -> str:
    """Return a name that an error can show."""
    return text if len(text) <= LONGEST_NAME else f"{text[:LONGEST_NAME]}…"
