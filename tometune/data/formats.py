"""Row formats: the shape of each row is recognised on its own, and what it holds becomes turns.

Shapes are a column with a list of turns, a pair of columns such as instruction and output, or either with preference
data. Names are in the tables below. What a row holds beyond that is named in `Conversation.unread`.
"""

import json
import math
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any, NamedTuple

from tometune.common.errors import did_you_mean
from tometune.config.data import Preference, RowFormat, SourceConfig

# Role names found in datasets, in lower case, and the standard role of each.
ROLES = dict.fromkeys(("system", "developer"), "system")
ROLES |= dict.fromkeys(("human", "user", "prompter"), "user")
ROLES |= dict.fromkeys(("gpt", "assistant", "model", "bot", "chatgpt", "ai", "chatbot"), "assistant")
TOOL_NAMES = ("function_response", "tool_response", "function_result", "tool_result", "observation", "ipython")
ROLES |= dict.fromkeys(("tool", "function", *TOOL_NAMES), "tool")
CALL_ROLES = ("function_call", "tool_call")  # the assistant's, with the call as JSON in the text
PLAIN_ROLES = ROLES.copy()
ROLES |= dict.fromkeys(CALL_ROLES, "assistant")

# Keys of a turn.
ROLE_KEYS, TEXT_KEYS = ("from", "role"), ("value", "content", "text")
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
CALL_KEYS = ("tool_calls", "function_call")
WEIGHT_KEYS = ("weight", "train", "loss", "loss_weight")
TOOL_TURN_KEYS = ("name", "tool_call_id")  # some templates show them

# Columns by what they hold. The first one with content is used, except that all of `context` is.
COLUMNS: dict[str, tuple[str, ...]] = {
    "messages": ("conversations", "messages", "conversation", "dialogue"),
    "user": ("instruction", "question", "query", "prompt", "problem", "human", "user", "inputs", "input"),
    "context": ("input", "context"),
    "assistant": ("output", "response", "answer", "completion", "solution", "assistant", "targets", "target"),
    "system": ("system", "system_prompt"),
    "reasoning": ("reasoning_content",),
    "history": ("history",),
    "tools": ("tools", "functions"),
}
SOURCE_COLUMNS = ("source", "dataset")  # the name of a row's source
# What the formats that can be asked for read, and the keys of their turns.
ONLY: dict[RowFormat, dict[str, tuple[str, ...]]] = {
    RowFormat.sharegpt: {"user": (), "assistant": ()},
    RowFormat.messages: {"user": (), "assistant": ()},
    RowFormat.alpaca: {"messages": (), "user": ("instruction", "input"), "assistant": ("output", "response")},
    RowFormat.prompt_completion: {"messages": (), "user": ("prompt",), "context": (), "assistant": ("completion",)},
}
TURN_KEYS: dict[RowFormat, tuple[tuple[str, ...], tuple[str, ...]]] = {
    RowFormat.sharegpt: (("from",), ("value",)),
    RowFormat.messages: (("role",), ("content",)),
}

# Preference data: the side that was chosen, the other one, and labels of single answers.
CHOSEN = ("chosen", "chosen_response", "response_chosen")
REJECTED = ("rejected", "rejected_response", "response_rejected", "rejected_messages")
LABELS = ("label", "kto_tag")
PREFERENCE = frozenset((*REJECTED, *LABELS))

# Columns, keys of turns and types of parts that hold something other than text.
MEDIA = {
    name: f"{kind}_not_read"
    for kind in ("image", "audio", "video")
    for name in (kind, f"{kind}s", f"{kind}_url", f"input_{kind}")
}
TEXT_PARTS = ("text", "input_text", "output_text")

# How conversations are written as one text: what begins a turn, with its role. The first that begins the text counts.
TRANSCRIPTS = (
    re.compile(r"<\|im_start\|>(\w+)\n"),
    re.compile(r"###\s?(\w+):"),
    re.compile(r"(?:^|\n)\s*(Human|User|Assistant|System|Function Response):", re.IGNORECASE),
)
END_MARKS = re.compile(r"<\|(?:im_end|endoftext)\|>|</s>")

# Names of columns that hold questions or answers, for the mapping that an error suggests.
ASKING = re.compile("question|prompt|instruct|query|input|user|human|problem", re.IGNORECASE)
ANSWERING = re.compile("answer|response|output|complet|assistant|reply|target|solution", re.IGNORECASE)

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
        super().__init__(message)
        self.reason = reason


class Reader:
    """Reads the rows of a source; `key` is the source's key in the config, for errors."""

    def __init__(self, source: SourceConfig, key: str) -> None:
        self.key, self.form, self.preference = key, source.format, source.preference
        mapped = {role: (column,) for role, column in source.columns.items()}
        self.mapped = source.columns
        self.columns = COLUMNS | ONLY.get(source.format, {}) | mapped
        if mapped.keys() & {"user", "assistant"}:  # a question and its answer, to which nothing is added by guessing
            self.columns |= {role: mapped.get(role, ()) for role in ("messages", "context")}
        elif "messages" in mapped:
            self.columns |= {"user": (), "assistant": ()}
        self.role_keys, self.text_keys = TURN_KEYS.get(source.format, (ROLE_KEYS, TEXT_KEYS))
        # The keys of most turns, which are read fast: (from, value) and (role, content).
        self.pairs = tuple(zip(self.role_keys, self.text_keys, strict=False))
        self.surroundings = frozenset(name for role in ("system", "history", "tools") for name in self.columns[role])
        self.score = source.score

    def read(self, row: dict[str, Any]) -> Conversation:
        """Read a row of any shape.

        Raises:
            FormatError: the row has no known shape, or something in it is broken.
        """
        found = Conversation(read={self.score})
        answer = None if PREFERENCE.isdisjoint(row) else self._chosen(row, found)
        if answer and answer[0].role != "assistant":
            found.turns = answer  # a whole conversation
        else:
            column = next((name for name in self.columns["messages"] if _entries(row.get(name))), None)
            if column is None:
                found.turns = self._columns(row, found, answer)
            else:
                found.read.add(column)
                found.turns = self._turns(row[column], found) + (answer or [])
        if not self.surroundings.isdisjoint(row):
            self._surroundings(row, found)
        for name, value in row.items():
            if name not in found.read and not _empty(value):
                found.unread.add(name)
                if name in MEDIA:
                    found.dropped = MEDIA[name]
        return found

    def _chosen(self, row: dict[str, Any], found: Conversation) -> list[Turn] | None:
        """Return the chosen side of a row of preference data; None if the row's own answer is to be used."""
        label = next((name for name in LABELS if isinstance(row.get(name), bool)), None)
        other = None if "assistant" in self.mapped else _first(row, REJECTED)
        if self.preference is Preference.ignore or not (label or other):
            return None
        if self.preference is Preference.refuse:
            what = f"it has a column {other}" if other else f"its {label} is true or false"
            fix = f"set {self.key}.preference=chosen to train on the chosen side"
            raise FormatError("preference_data", f"is preference data ({what}); {fix}")
        if label and not row[label]:
            found.dropped = "not_chosen"
        chosen = _first(row, CHOSEN) if other else None
        found.read.update(name for name in (label, other, chosen) if name)
        if chosen is None:
            return None
        whole = _entries(row[chosen]) is not None and not _is_parts(row[chosen])
        return self._turns(row[chosen], found) if whole else self._side(row[chosen], "assistant", found)

    def _columns(self, row: dict[str, Any], found: Conversation, answer: list[Turn] | None) -> list[Turn]:
        """Read a question and its answer from columns of their own; `answer` is the one that was chosen, if any."""
        asked, replied = _first(row, self.columns["user"]), _first(row, self.columns["assistant"])
        self._check_columns(row, asked, replied, answer is not None)
        context = [name for name in self.columns["context"] if name != asked and not _empty(row.get(name))]
        reasoning = _first(row, self.columns["reasoning"])
        question = self._side(row[asked] if asked else "", "user", found)
        texts = [question[-1].text, *(_text(row[name], found) for name in context)]
        question[-1] = question[-1]._replace(text="\n\n".join(text for text in texts if text))
        if answer is None:
            answer = self._side(row[replied] if replied else "", "assistant", found)
        else:
            replied = None
        if reasoning and len(answer) == 1:
            answer = [answer[0]._replace(extra={"reasoning": _text(row[reasoning], found), **(answer[0].extra or {})})]
        else:
            reasoning = None
        found.read.update(name for name in (asked, replied, reasoning, *context) if name)
        return question + answer

    def _side(self, value: Any, role: str, found: Conversation) -> list[Turn]:
        """Read a question or an answer: a text, a turn, or turns."""
        turns = [value] if isinstance(value, dict) else value
        if isinstance(turns, list) and turns and isinstance(turns[0], dict) and not _is_parts(turns):
            return self._turns(turns, found) or [Turn(role, "")]
        return [Turn(role, _text(value, found))]

    def _check_columns(self, row: dict[str, Any], asked: str | None, replied: str | None, chosen: bool) -> None:
        """Raise a `FormatError` if a row does not have the columns of a question and its answer."""
        for role in ("messages", "user", "assistant"):
            column = self.mapped.get(role)
            if column is not None and column not in row:
                wrong = f"has no column {_short(column)!r}, which {self.key}.columns.{role} names"
                raise FormatError("no_such_column", f"{wrong}; its columns are {_names(row) or 'none'}")
        if asked and (replied or chosen):
            return
        turns = _first(row, self.columns["messages"])
        if turns and not isinstance(row[turns], list):
            wrong = f"{turns!r} is of type {type(row[turns]).__name__}"
            raise FormatError("not_a_list_of_turns", f"the conversation in {wrong}; make it a list of turns")
        if any(name in row for name in self.columns["messages"]):
            return  # without turns
        known = all(any(name in row for name in self.columns[side]) for side in ("user", "assistant"))
        if not (known or (asked and not _texts(row, asked)) or chosen):
            auto = self.form is RowFormat.auto
            reads = "with turns, nor with a question and its answer," if auto else f"of format={self.form}"
            wrong = f"no columns {reads} among {_names(row) or 'none'}"
            raise FormatError("unknown_columns", f"{wrong}; set {self._fix(row)}")

    def _fix(self, row: dict[str, Any]) -> str:
        """Return the overrides that name a row's columns, as far as their names tell what they hold."""
        chats = {name: _entries(value) or () for name, value in row.items()}
        chat = next((name for name, entries in chats.items() if any(map(_is_turn, entries))), None)
        texts = _texts(row)
        assistant = next(filter(ANSWERING.search, texts), texts[-1] if len(texts) > 1 else "ANSWERS")
        rest = [name for name in texts if name != assistant]
        user = next(filter(ASKING.search, rest), rest[0] if rest else "QUESTIONS")
        names = {"messages": chat} if chat else {"user": user, "assistant": assistant}
        fix = "" if self.form is RowFormat.auto else f"{self.key}.format=auto"
        if all(name in COLUMNS[role] for role, name in names.items()):
            return fix
        listed = ", ".join(f"{role}: {_quoted(name)}" for role, name in names.items())
        return f"{fix} '{self.key}.columns={{{listed}}}'".lstrip()

    def _surroundings(self, row: dict[str, Any], found: Conversation) -> None:
        """Add earlier turns, the system text and tools that a row has in columns of their own."""
        own = next((turn for turn in found.turns if turn.role == "system"), None)
        history = _first(row, self.columns["history"])
        if history and _entries(row[history]):
            found.read.add(history)
            start = 1 if own and found.turns[0] is own else 0
            found.turns[start:start] = self._turns(row[history], found)
        if system := _first(row, self.columns["system"]):
            text = re.sub(r"^SYSTEM:\s*", "", _text(row[system], found))  # Glaive's rows begin so
            if own is None:
                found.turns.insert(0, Turn("system", text))
            if own is None or own.text == text:
                found.read.add(system)
        if name := _first(row, self.columns["tools"]):
            found.tools = _tools(row[name])
            found.read.update([name] if found.tools is not None else [])

    def _turns(self, value: Any, found: Conversation) -> list[Turn]:
        """Read the turns of a list, of a list as JSON, or of a transcript."""
        entries = _entries(value) or []
        turns: list[Turn] = []
        first = entries[0] if entries and isinstance(entries[0], dict) else {}
        role_key, text_key = next((pair for pair in self.pairs if pair[0] in first), self.pairs[0])
        alternating = cycle(("user", "assistant"))
        for entry in entries:
            if type(entry) is dict:
                if len(entry) == 2:  # nearly every turn; the other way is slower
                    role, text = entry.get(role_key), entry.get(text_key)
                    if type(role) is str and type(text) is str and role in PLAIN_ROLES:
                        turns.append(Turn(PLAIN_ROLES[role], text))
                        continue
                turns += self._turn(entry, found)
            elif entry is None:
                turns.append(Turn("", ""))  # removed and counted later, like every turn without text
            elif isinstance(entry, str):
                turns.append(Turn(next(alternating), entry))
            elif isinstance(entry, list) and len(entry) == 2:
                turns += [Turn("user", _text(entry[0], found)), Turn("assistant", _text(entry[1], found))]
            else:
                wrong = f"a turn is of type {type(entry).__name__}"
                raise FormatError("turn_not_an_object", f"{wrong}; make it an object with role and content")
        return turns

    def _turn(self, turn: dict[str, Any], found: Conversation) -> list[Turn]:
        """Read a turn, or a pair such as `{human, assistant}` as its turns."""
        role_key = next((name for name in self.role_keys if turn.get(name) is not None), None)
        if role_key is None:
            return self._pair(turn, found)
        name = re.sub(r"[\s-]+", "_", turn[role_key].strip().lower()) if isinstance(turn[role_key], str) else ""
        if name not in ROLES:
            given = _short(str(turn[role_key]))
            known = f"use one of {', '.join(ROLES)}"
            raise FormatError("unknown_role", f"unknown role {given!r}{did_you_mean(given, ROLES) or ';'} {known}")
        keys = [key for key in self.text_keys if key in turn]
        text_key = next((key for key in keys if not _empty(turn[key])), next(iter(keys), None))
        if text_key is None and not _first(turn, CALL_KEYS):
            wrong = f"a turn has no text in {' or '.join(self.text_keys)} (its keys: {_names(turn)})"
            raise FormatError("no_text", f"{wrong}; rename the key, or set it to null")
        role = ROLES[name]
        text = _text(turn[text_key], found) if text_key else ""
        extra = _extra(role, turn, {role_key, text_key}, found) if len(turn) > 2 or not text_key else {}
        if name in CALL_ROLES:
            with suppress(FormatError):  # a call that is not JSON stays text
                extra["tool_calls"], text = _calls(text), ""
        return [Turn(role, text, extra or None)]

    def _pair(self, turn: dict[str, Any], found: Conversation) -> list[Turn]:
        roles = ("system", "user", "assistant")
        names = {role: next((name for name in COLUMNS[role] if name in turn), None) for role in roles}
        if names["user"] is None or names["assistant"] is None:
            wrong = f"a turn has no role in {' or '.join(self.role_keys)} (its keys: {_names(turn)})"
            raise FormatError("no_role", f"{wrong}; use one of {', '.join(ROLES)}")
        found.unread.update(f"turn.{key}" for key in turn if key not in names.values() and not _empty(turn[key]))
        return [Turn(role, _text(turn[name], found)) for role, name in names.items() if name]


def _extra(role: str, turn: dict[str, Any], read: set[str | None], found: Conversation) -> dict[str, Any]:
    """Return what a turn holds beyond role and text, and note the keys that are not read."""
    extra: dict[str, Any] = {}
    for key, value in turn.items():
        if key in read or _empty(value):
            continue
        trained = _trained(key, value) if key in WEIGHT_KEYS else None
        if role == "assistant" and trained is not None:
            extra |= {} if trained else {"trained": False}
        elif role == "assistant" and key in REASONING_KEYS:
            extra["reasoning"] = _text(value, found)
        elif role == "assistant" and key in CALL_KEYS:
            extra["tool_calls"] = _calls(value)
        elif role == "tool" and key in TOOL_TURN_KEYS:
            extra[key] = value
        elif trained is not False:  # other turns are never trained
            found.unread.add(f"turn.{key}")
            found.dropped = MEDIA.get(key, found.dropped)
    return extra


def _first(row: dict[str, Any], names: Iterable[str]) -> str | None:
    """Return the first of these columns that has content."""
    return next((name for name in names if not _empty(row.get(name))), None)


def _empty(value: Any) -> bool:
    """Return whether a value is null, an empty text, list or object, or NaN, which pandas writes for null."""
    return value is None or value == "" or value == [] or value == {} or (type(value) is float and math.isnan(value))


def _texts(row: dict[str, Any], *but: str) -> list[str]:
    """Return the columns that hold text and may be a question or an answer."""
    return [
        name for name, value in row.items() if isinstance(value, str) and value and name not in (*but, *SOURCE_COLUMNS)
    ]


def _entries(value: Any) -> list[Any] | None:
    """Return the entries of a list of turns, or of a text that holds one; None if there are none."""
    if isinstance(value, list):
        return value if any(value) else None
    if not isinstance(value, str):
        return None
    text = value.strip()
    if text[:1] == "[":
        with suppress(ValueError, RecursionError):
            return _entries(json.loads(text))
    style = next((style for style in TRANSCRIPTS if style.match(text)), None)
    if style is None:
        return None
    parts = style.split(text)[1:]
    return [
        {"role": role, "content": END_MARKS.sub("", content).strip()}
        for role, content in zip(parts[::2], parts[1::2], strict=True)
    ]


def _is_turn(entry: Any) -> bool:
    return isinstance(entry, dict) and not {*ROLE_KEYS}.isdisjoint(entry)


def _is_parts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(part, dict) and "type" in part for part in value)


def _text(value: Any, found: Conversation) -> str:
    """Return a text: a string, or the texts in a list of parts."""
    if isinstance(value, str):
        return value
    if _empty(value):
        return ""
    if not _is_parts(value):
        raise FormatError("not_a_text", f"a turn's text is of type {type(value).__name__}; make it text")
    texts = []
    for part in value:
        kind = str(part["type"] or "text")
        if kind in MEDIA:
            found.dropped = MEDIA[kind]
        elif kind in TEXT_PARTS and isinstance(part.get("text"), str | None):
            texts.append(part.get("text") or "")
        else:
            wrong = f"a part of a turn is of type {_short(kind)!r}"
            raise FormatError("unknown_part", f"{wrong}; make it text, or drop the row")
    return "".join(texts)


def _trained(key: str, value: Any) -> bool | None:
    """Return whether a turn is trained; None for a share, which cannot be honoured and counts as not read."""
    if isinstance(value, str):
        value = {"0": 0, "false": 0, "1": 1, "true": 1}.get(value.strip().lower(), value)
    if not isinstance(value, int | float):
        raise FormatError("bad_weight", f"a turn's {key} is {_short(str(value))!r}; make it 0 or 1")
    return bool(value) if value in (0, 1) else None


def _calls(value: Any) -> list[dict[str, Any]]:
    """Return tool calls in one shape, `{type, function: {name, arguments}}` with the arguments as an object."""
    calls = []
    for call in _objects(value) or ():
        function = call.get("function", call)
        name = function.get("name") if isinstance(function, dict) else None
        arguments = function.get("arguments", function.get("parameters")) if name else None
        if isinstance(arguments, str) and arguments.strip():
            with suppress(ValueError, RecursionError):
                arguments = json.loads(arguments)
        arguments = {} if _empty(arguments) else arguments
        if not isinstance(name, str) or not isinstance(arguments, dict):
            break
        identity = {"id": call["id"]} if call.get("id") else {}
        calls.append({**identity, "type": "function", "function": {"name": name, "arguments": arguments}})
    else:
        if calls:
            return calls
    fix = "make it {function: {name, arguments}} with the arguments as an object or as JSON"
    raise FormatError("bad_tool_call", f"a tool call cannot be read; {fix}")


def _tools(value: Any) -> list[dict[str, Any]] | None:
    """Return tools in one shape, `{type, function}`; None if they cannot be read."""
    tools = _objects(value)
    shaped = [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools or ()]
    named = all(isinstance(tool["function"], dict) and "name" in tool["function"] for tool in shaped)
    return shaped if tools is not None and named else None


def _objects(value: Any) -> list[dict[str, Any]] | None:
    """Return the objects of a list, which may be JSON, as may its entries; None if it holds anything else."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    objects: list[Any] = []
    for entry in value if isinstance(value, list) else [value]:
        parsed = _objects(entry) if isinstance(entry, str) else [entry]
        if parsed is None:
            return None
        objects += parsed
    return objects if all(isinstance(entry, dict) for entry in objects) else None


def _names(names: Iterable[str]) -> str:
    """List column or key names in one short line, whatever they contain."""
    shown = [_short(name) if name.isprintable() else repr(_short(name)) for name in names]
    more = f" and {len(shown) - MOST_NAMES:,} more" if len(shown) > MOST_NAMES else ""
    return ", ".join(shown[:MOST_NAMES]) + more


def _quoted(name: str) -> str:
    """Return a name as a value of Hydra's command line."""
    return name if re.fullmatch(r"[\w-]+( [\w-]+)*", name) else json.dumps(name)


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_NAME else f"{text[:LONGEST_NAME]}…"
