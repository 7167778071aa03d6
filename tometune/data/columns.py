"""The quick way to standardise: whole columns of conversations that need no mending, without a Python object a turn.

A row is in order if its turns are an optional system turn, then one of the user, the roles taking turns from there (but
for tools, which may call each other), the last one the assistant's, and none of them empty. `mend` would give back such
a row as it is. Whatever is not so, or not sure, is left to the row-wise way.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tometune.config.data import RowFormat
from tometune.data.formats import CONVERSATION_COLUMNS, ROLES

NAMES = ("system", "user", "assistant", "tool")
SYSTEM, USER, ASSISTANT, TOOL = range(4)
UNKNOWN = -1

FIELDS = {RowFormat.sharegpt: ("from", "value"), RowFormat.messages: ("role", "content")}
"""Role and text of a turn."""

MESSAGES = pa.list_(pa.struct({"role": pa.string(), "content": pa.string()}))


@dataclass(frozen=True)
class Conversations:
    """Some rows as columns."""

    messages: pa.ListArray
    """All rows as role/content, of type `MESSAGES`; those out of order are not to be used."""

    offsets: np.ndarray
    """Shape (rows + 1): where the turns of each row begin among `texts`."""

    texts: pa.StringArray
    """Texts of all turns."""

    in_order: np.ndarray
    """Shape (rows), bool."""

    form: RowFormat
    """What they came as."""


def conversations(batch: pa.RecordBatch, asked: RowFormat) -> Conversations | None:
    """Return the rows as columns; None if the batch is not of the one shape that this way can read.

    Args:
        batch: rows of a source.
        asked: the format in the config.
    """
    columns = [name for name in CONVERSATION_COLUMNS if name in batch.schema.names]
    if len(columns) != 1 or (asked is not RowFormat.auto and asked not in FIELDS):
        return None
    column = _list_of_structs(batch.column(columns[0]))
    if column is None:
        return None
    form = RowFormat.sharegpt if column.type.value_type.get_field_index("from") >= 0 else RowFormat.messages
    turns = column.flatten()  # without what stands under rows that are null
    fields = [_field(turns, name) for name in FIELDS[form]]
    if asked not in (form, RowFormat.auto) or None in fields:
        return None
    roles, texts = fields
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    codes = _codes(roles)
    empty = pc.or_(pc.equal(pc.utf8_length(texts), 0), pc.utf8_is_space(texts))
    codes[pc.or_kleene(turns.is_null(), pc.fill_null(empty, True)).to_numpy(zero_copy_only=False)] = UNKNOWN
    names = pa.DictionaryArray.from_arrays(pa.array(np.maximum(codes, 0), pa.int8()), list(NAMES))
    struct = pa.StructArray.from_arrays([names.cast(pa.string()), texts], names=["role", "content"])
    messages = pa.ListArray.from_arrays(pa.array(offsets), struct)
    return Conversations(messages, offsets, texts, _in_order(codes, offsets), form)


def _list_of_structs(column: Any) -> Any:
    """Return the column as a list of structs with text in them, or None."""
    if not (pa.types.is_list(column.type) and pa.types.is_struct(column.type.value_type)):
        return None
    try:
        column.validate(full=True)  # UTF-8 too
    except pa.ArrowInvalid:
        return None
    return column


def _field(turns: Any, name: str) -> Any:
    """Return a field of the turns as text, or None."""
    index = turns.type.get_field_index(name)
    if index < 0 or not pa.types.is_string(turns.type.field(index).type):
        return None
    return turns.field(index)


def _codes(roles: Any) -> np.ndarray:
    """Return the standardised role of each turn as its place in `NAMES`; -1 where it is null or not known."""
    encoded = roles.dictionary_encode()
    known = [NAMES.index(ROLES[name]) if name in ROLES else UNKNOWN for name in encoded.dictionary.to_pylist()]
    table: np.ndarray = np.array([*known, UNKNOWN], dtype=np.int8)
    indices: np.ndarray = pc.fill_null(encoded.indices, len(known)).to_numpy(zero_copy_only=False)
    codes: np.ndarray = table[indices]
    return codes


def _in_order(codes: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Tell which rows need no mending."""
    starts, ends = offsets[:-1], offsets[1:]
    filled = ends > starts
    wrong = codes == UNKNOWN
    first = np.zeros(len(codes), dtype=bool)
    first[starts[filled]] = True
    before = np.concatenate([[UNKNOWN], codes[:-1]])
    wrong |= (codes == before) & (codes != TOOL) & ~first
    wrong |= (codes == SYSTEM) & ~first
    opening = first | (~first & (before == SYSTEM))  # the turn that a user should have, or a system turn before it
    wrong |= opening & (codes != USER) & ~(first & (codes == SYSTEM))
    counted = np.concatenate([[0], np.cumsum(wrong)])
    good: np.ndarray = filled & (counted[ends] == counted[starts])
    good[filled] &= codes[ends[filled] - 1] == ASSISTANT
    return good
