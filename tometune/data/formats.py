"""Row formats: the shape of each row is recognised on its own, and what it holds becomes turns.

Shapes are a column with a list of turns, a pair of columns such as instruction and output, or either with preference
data. What a row holds beyond that is named in `Conversation.unread`. For other columns an error suggests the mapping.
"""

import json
import math
import re
from contextlib import suppress
from itertools import cycle
from typing import Any

from tometune.common.errors import did_you_mean, hydra_text, shell_word
from tometune.config.data import REJECTED, Preference, RowFormat, SourceConfig
from tometune.data.conversations import NO_TRAINED
from tometune.data.turns import (
    CALL_KEYS,
    ROLE_KEYS,
    TEXT_KEYS,
    Conversation,
    FormatError,
    Turn,
    as_json,
    calls_of,
    entries_of,
    extra_of,
    first_filled,
    is_empty,
    is_parts,
    is_turn,
    listed,
    not_read,
    number_of,
    shortened,
    text_of,
    tools_of,
    truth_of,
)

# Columns by what they hold. The first one with content is used, except that all of `context` is.
COLUMNS: dict[str, tuple[str, ...]] = {
    "messages": ("conversations", "messages", "conversation", "dialogue"),
    "user": ("instruction", "question", "query", "prompt", "problem", "human", "user", "inputs", "input"),
    "context": ("input", "context"),
    "assistant": ("output", "response", "solution", "answer", "completion", "assistant", "targets", "target"),
    "system": ("system", "system_prompt"),
    "reasoning": ("reasoning_content",),
    "history": ("history",),
    "tools": ("tools", "functions"),
}
SOURCE_COLUMNS = ("source", "dataset")  # the name of a row's source
WEIGHT_COLUMNS = ("weight", "train", "loss_weight")  # 0: the answer is not trained

# What the formats that can be asked for read.
ONLY: dict[RowFormat, dict[str, tuple[str, ...]]] = {
    RowFormat.sharegpt: {"user": (), "assistant": ()},
    RowFormat.messages: {"user": (), "assistant": ()},
    RowFormat.alpaca: {"messages": (), "user": ("instruction", "input"), "assistant": ("output", "response")},
    RowFormat.prompt_completion: {"messages": (), "user": ("prompt",), "context": (), "assistant": ("completion",)},
}

# Preference data: the side that was chosen, and labels of single answers.
CHOSEN = ("chosen", "chosen_response", "response_chosen")
LABELS = ("label", "kto_tag")
PREFERENCE = frozenset((*REJECTED, *LABELS))

# Names of columns that hold questions or answers, for the mapping.
ASKING = re.compile("question|prompt|instruct|query|input|user|human|problem", re.IGNORECASE)
ANSWERING = re.compile("answer|response|output|complet|assistant|reply|target|solution", re.IGNORECASE)
BELOW = re.compile("context|passage", re.IGNORECASE)
NEITHER = re.compile(r"reject|(^|[\W_])(id|uuid|url|title|category|type|split|source|dataset)$", re.IGNORECASE)
# A name that Hydra reads as text without quotes.
PLAIN_NAME = re.compile(r"(?!(?:true|false|null|nan|inf)$)[a-z_]\w*", re.IGNORECASE | re.ASCII)

# Role names found in datasets, in lower case, and the standard role of each.
ROLES = dict.fromkeys(("system", "developer"), "system")
ROLES |= dict.fromkeys(("human", "user", "prompter"), "user")
ROLES |= dict.fromkeys(("gpt", "assistant", "model", "bot", "chatgpt", "ai", "chatbot"), "assistant")
TOOL_NAMES = ("function_response", "tool_response", "function_result", "tool_result", "observation", "ipython")
ROLES |= dict.fromkeys(("tool", "function", *TOOL_NAMES), "tool")
CALL_ROLES = ("function_call", "tool_call")  # the assistant's, with the call as JSON in the text
PLAIN_ROLES = ROLES.copy()
ROLES |= dict.fromkeys(CALL_ROLES, "assistant")

# Keys of turns in the formats that can be asked for.
TURN_KEYS: dict[RowFormat, tuple[tuple[str, ...], tuple[str, ...]]] = {
    RowFormat.sharegpt: (("from",), ("value",)),
    RowFormat.messages: (("role",), ("content",)),
}


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
        missing = {f"{column} (no such column)" for column in self.mapped.values() if column not in row}
        found = Conversation(unread=missing)
        answer = [] if PREFERENCE.isdisjoint(row) else self._chosen(row, found)
        if answer and answer[0].role != "assistant":
            found.turns = answer  # a whole conversation
        else:
            column = next((name for name in self.columns["messages"] if entries_of(row.get(name))), None)
            if column is None:
                found.turns = self._columns(row, found, answer)
            else:
                found.read.add(column)
                found.turns = self._turns(row[column], found)
                while answer and found.turns and found.turns[-1].role == "assistant":
                    found.turns.pop()  # the chosen answer replaces the row's own
                found.turns += answer
        if not self.surroundings.isdisjoint(row):
            self._surroundings(row, found)
        self._others(row, found)
        extras = [turn.extra for turn in found.turns if turn.extra]
        if extras or found.tools:
            as_json([extras, found.tools])  # or the row cannot be read
        return found

    def _others(self, row: dict[str, Any], found: Conversation) -> None:
        """Note the columns that are not read, and a weight of the whole row."""
        if self.score in row and not math.isnan(number_of(row[self.score])):
            found.read.add(self.score)
        for name, value in row.items():
            if name not in found.read and not is_empty(value):
                trained = truth_of(value) if name in WEIGHT_COLUMNS else None
                if trained is None:
                    not_read(name, name, value, found)
                elif not trained:
                    found.dropped = NO_TRAINED

    def _chosen(self, row: dict[str, Any], found: Conversation) -> list[Turn]:
        """Return the chosen side of a row of preference data, or nothing if the row's own answer is to be used."""
        labels = {name: _is_chosen(row, name) for name in LABELS if name not in self.mapped.values()}
        label = next((name for name, is_chosen in labels.items() if is_chosen is not None), None)
        other = None if "assistant" in self.mapped else first_filled(row, REJECTED)
        if self.preference is Preference.ignore or not (label or other):
            return []
        if self.preference is Preference.refuse:
            what = f"it has a column {other}" if other else f"its {label} is true or false"
            fix = f"set {self.key}.preference=chosen to train on the chosen side"
            raise FormatError("preference_data", f"is preference data ({what}); {fix}, or ignore if it is not")
        if label and not labels[label]:
            found.dropped = "not_chosen"
        chosen = first_filled(row, CHOSEN) if other else None
        found.read.update(name for name in (label, other, chosen) if name)
        if chosen is None:
            return []
        whole = entries_of(row[chosen]) is not None and not is_parts(row[chosen]) and row[chosen][:1] != "["
        return self._turns(row[chosen], found) if whole else self._side(row[chosen], "assistant", found)

    def _columns(self, row: dict[str, Any], found: Conversation, answer: list[Turn]) -> list[Turn]:
        """Read a question and its answer from columns of their own; `answer` is the one that was chosen, if any."""
        asked = first_filled(row, self.columns["user"])
        replied = None if answer else first_filled(row, self.columns["assistant"])
        self._check_columns(row, asked, replied, chosen=bool(answer))
        context = [name for name in self.columns["context"] if name != asked and not is_empty(row.get(name))]
        reasoning = first_filled(row, self.columns["reasoning"])
        question = self._side(row[asked] if asked else "", "user", found)
        texts = [question[-1].text, *(text_of(row[name], found) for name in context)]
        question[-1] = question[-1]._replace(text="\n\n".join(text for text in texts if text))
        answer = answer or self._side(row[replied] if replied else "", "assistant", found)
        own = answer[0].extra or {}
        if reasoning and len(answer) == 1 and "reasoning" not in own:
            answer = [answer[0]._replace(extra={"reasoning": text_of(row[reasoning], found), **own})]
        else:
            reasoning = None
        found.read.update(name for name in (asked, replied, reasoning, *context) if name)
        return question + answer

    def _side(self, value: Any, role: str, found: Conversation) -> list[Turn]:
        """Read a question or an answer: a text, a turn, or turns, which may be JSON."""
        turns = [value] if isinstance(value, dict) else value
        if isinstance(value, str) and value[:1] == "[":
            entries = entries_of(value) or []
            turns = entries if all(is_turn(entry) and self._role_of(entry) in ROLES for entry in entries) else value
        if isinstance(turns, list) and turns and isinstance(turns[0], dict) and not is_parts(turns):
            return self._turns(turns, found) or [Turn(role, "")]
        return [Turn(role, text_of(value, found))]

    def _check_columns(self, row: dict[str, Any], asked: str | None, replied: str | None, chosen: bool) -> None:
        """Raise a `FormatError` if a row does not have the columns of a question and its answer."""
        for role in ("messages", "user", "assistant"):
            column = self.mapped.get(role)
            if column is not None and column not in row:
                wrong = f"has no column {shortened(column)!r}, which {self.key}.columns.{role} names"
                raise FormatError("no_such_column", f"{wrong}; its columns are {listed(row) or 'none'}")
        if asked and (replied or chosen):
            return
        turns = first_filled(row, self.columns["messages"])
        if turns and not isinstance(row[turns], list):
            wrong = f"{turns!r} is of type {type(row[turns]).__name__}"
            fix = "make it a list of turns, or lines that begin with User: and Assistant:"
            raise FormatError("not_a_list_of_turns", f"the conversation in {wrong}; {fix}")
        if any(name in row for name in self.columns["messages"]):
            return  # without turns
        if is_turn(row) and self._role_of(row) in ROLES:
            fix = 'write a conversation per row, as {"messages": […]}'
            raise FormatError("turn_not_conversation", f"is a single turn; {fix}")
        known = all(any(name in row for name in self.columns[side]) for side in ("user", "assistant"))
        if not (known or (asked and not _text_columns(row, asked)) or chosen):
            auto = self.form is RowFormat.auto
            reads = "with turns, nor with a question and its answer," if auto else f"of format={self.form}"
            wrong = f"no columns {reads} among {listed(row) or 'none'}"
            raise FormatError("unknown_columns", f"{wrong}; set {_mapping(row, self.key, self.form)}")

    def _surroundings(self, row: dict[str, Any], found: Conversation) -> None:
        """Add earlier turns, the system text and tools that a row has in columns of their own."""
        begins = next((turn for turn in found.turns if turn.role in ("system", "user") and turn.text.strip()), None)
        own = begins if begins and begins.role == "system" else None
        history = first_filled(row, self.columns["history"])
        if history and entries_of(row[history]):
            found.read.add(history)
            start = 1 if own and found.turns[0] is own else 0
            found.turns[start:start] = self._turns(row[history], found)
        if system := first_filled(row, self.columns["system"]):
            text = re.sub(r"^SYSTEM:\s*", "", text_of(row[system], found))  # Glaive's rows begin so
            if own is None:
                spoken = [turn for turn in found.turns if turn.role != "system" or turn.text.strip()]
                found.turns = [Turn("system", text), *spoken]
            if own is None or own.text == text:
                found.read.add(system)
        if name := first_filled(row, self.columns["tools"]):
            found.tools = tools_of(row[name])
            found.read.update([name] if found.tools is not None else [])

    def _turns(self, value: Any, found: Conversation) -> list[Turn]:
        """Read the turns of a list, of a list as JSON, or of a transcript."""
        entries = entries_of(value) or []
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
                turns += [Turn("user", text_of(entry[0], found)), Turn("assistant", text_of(entry[1], found))]
            else:
                wrong = f"a turn is of type {type(entry).__name__}"
                raise FormatError("turn_not_an_object", f"{wrong}; make it an object with role and content")
        return turns

    def _turn(self, turn: dict[str, Any], found: Conversation) -> list[Turn]:
        """Read a turn, or a pair such as `{human, assistant}` as its turns."""
        role_key = next((name for name in self.role_keys if turn.get(name) is not None), None)
        if role_key is None:
            return self._pair(turn, found)
        name = self._role_of(turn)
        if name not in ROLES:
            given = shortened(str(turn[role_key]))
            known = f"use one of {', '.join(ROLES)}"
            raise FormatError("unknown_role", f"unknown role {given!r}{did_you_mean(given, ROLES) or ';'} {known}")
        keys = [key for key in self.text_keys if key in turn]
        text_key = next((key for key in keys if not is_empty(turn[key])), next(iter(keys), None))
        if text_key is None and not first_filled(turn, CALL_KEYS):
            wrong = f"a turn has no text in {' or '.join(self.text_keys)} (its keys: {listed(turn)})"
            raise FormatError("no_text", f"{wrong}; rename the key that holds the text")
        role = ROLES[name]
        value = turn[text_key] if text_key else None
        if name not in PLAIN_ROLES or role == "tool":  # a result or a call as an object is text, as in its JSON
            value = as_json(value) if isinstance(value, dict | list) and value and not is_parts(value) else value
        text = text_of(value, found)
        extra = extra_of(role, turn, {role_key, text_key}, found) if len(turn) > 2 or not text_key else {}
        if name in CALL_ROLES:
            with suppress(FormatError):  # a call that is not JSON stays text
                calls = calls_of(text, found)
                found.unread.update(() if extra.get("tool_calls", calls) == calls else ("turn.tool_calls",))
                extra["tool_calls"], text = calls, ""
        return [Turn(role, text, extra or None)]

    def _role_of(self, turn: dict[str, Any]) -> str:
        """Return the name of a turn's role as `ROLES` spells it, or nothing if it is not text."""
        role = next((turn[key] for key in self.role_keys if turn.get(key) is not None), None)
        return re.sub(r"[\s-]+", "_", role.strip().lower()) if isinstance(role, str) else ""

    def _pair(self, turn: dict[str, Any], found: Conversation) -> list[Turn]:
        roles = ("system", "user", "assistant")
        names = {role: next((name for name in COLUMNS[role] if name in turn), None) for role in roles}
        if names["user"] is None or names["assistant"] is None:
            wrong = f"a turn has no role in {' or '.join(self.role_keys)} (its keys: {listed(turn)})"
            raise FormatError("no_role", f"{wrong}; use one of {', '.join(ROLES)}")
        turns = [Turn(role, text_of(turn[name], found)) for role, name in names.items() if name]
        turns[-1] = turns[-1]._replace(extra=extra_of("assistant", turn, {*names.values()}, found) or None)
        return turns


def _is_chosen(row: dict[str, Any], label: str) -> bool | None:
    """Return what a label says of an answer; None for a `label` of 0 or 1 outside the columns of TRL, or any other."""
    value = row.get(label)
    sure = label != "label" or {"prompt", "completion"} <= row.keys() or str(value).strip().lower() in ("true", "false")
    return truth_of(value) if sure else None


def _mapping(row: dict[str, Any], key: str, form: RowFormat) -> str:
    """Return the overrides of a source (its key in the config) that name a row's columns, as far as names tell."""
    chats = {name: entries_of(value) or () for name, value in row.items()}
    chat = next((name for name, entries in chats.items() if any(map(is_turn, entries))), None)
    below = next(filter(BELOW.search, _text_columns(row)), None)
    texts = [name for name in _text_columns(row) if name != below and not NEITHER.search(name)]
    assistant = next(filter(ANSWERING.search, texts), None)
    user = next((name for name in texts if name != assistant and ASKING.search(name)), None)
    rest = iter(name for name in texts if name not in (user, assistant))
    pair = {"user": user or next(rest, "QUESTIONS"), "assistant": assistant or next(rest, "ANSWERS")}
    names = {"messages": chat} if chat else pair | ({"context": below} if below else {})
    fix = "" if form is RowFormat.auto else f"{key}.format=auto"
    if all(name in COLUMNS[role] for role, name in names.items()):
        return fix
    listed = ", ".join(f"{role}: {_quoted(name)}" for role, name in names.items())
    return f"{fix} {shell_word(f'{key}.columns={{{listed}}}')}".lstrip()


def _text_columns(row: dict[str, Any], *but: str) -> list[str]:
    """Return the columns that hold text and may be a question or an answer."""
    others = (*but, *SOURCE_COLUMNS)
    return [name for name, value in row.items() if isinstance(value, str) and value and name not in others]


def _quoted(name: str) -> str:
    """Return a name as a value of Hydra's command line; one that no line can show, as JSON writes it."""
    if PLAIN_NAME.fullmatch(name):
        return name
    return hydra_text(name) if name.isprintable() else json.dumps(name)
