"""Columns of rows: the names that are recognised, and the mapping that an error suggests for any others."""

import json
import re
from typing import Any

from tometune.common.errors import hydra_text, shell_word
from tometune.config.data import REJECTED, RowFormat
from tometune.data.turns import entries_of, is_turn

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

# Names of columns that hold questions or answers, for the mapping that an error suggests.
ASKING = re.compile("question|prompt|instruct|query|input|user|human|problem", re.IGNORECASE)
ANSWERING = re.compile("answer|response|output|complet|assistant|reply|target|solution", re.IGNORECASE)
BELOW = re.compile("context|passage", re.IGNORECASE)
NEITHER = re.compile(r"reject|(^|[\W_])(id|uuid|url|title|category|type|split|source|dataset)$", re.IGNORECASE)
# A name that Hydra reads as text without quotes.
PLAIN_NAME = re.compile(r"(?!(?:true|false|null|nan|inf)$)[a-z_]\w*", re.IGNORECASE | re.ASCII)


def mapping(row: dict[str, Any], key: str, form: RowFormat) -> str:
    """Return the overrides of a source (its key in the config) that name a row's columns, as far as names tell."""
    chats = {name: entries_of(value) or () for name, value in row.items()}
    chat = next((name for name, entries in chats.items() if any(map(is_turn, entries))), None)
    below = next(filter(BELOW.search, text_columns(row)), None)
    texts = [name for name in text_columns(row) if name != below and not NEITHER.search(name)]
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


def text_columns(row: dict[str, Any], *but: str) -> list[str]:
    """Return the columns that hold text and may be a question or an answer."""
    return [
        name for name, value in row.items() if isinstance(value, str) and value and name not in (*but, *SOURCE_COLUMNS)
    ]


def _quoted(name: str) -> str:
    """Return a name as a value of Hydra's command line; one that no line can show, as JSON writes it."""
    if PLAIN_NAME.fullmatch(name):
        return name
    return hydra_text(name) if name.isprintable() else json.dumps(name)
