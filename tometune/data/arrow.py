"""Arrow rows as Python objects, and Arrow types made plain."""

from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

Row = dict[str, Any]


def plain(batch: "pa.RecordBatch") -> list[Row]:
    """Return Arrow rows as Python objects; bytes that are not UTF-8 become half surrogate pairs, which are mended."""
    try:
        rows: list[Row] = batch.to_pylist()
    except UnicodeDecodeError:
        rows = _decoded(_binary(batch).to_pylist())
    return rows


def simplified(batch: "pa.RecordBatch") -> "pa.RecordBatch":
    """Return the batch with its texts and lists as plain strings and lists: no dictionaries, views, 64-bit offsets.

    A column that cannot be cast stays as it is. Bytes that are not UTF-8 stay what they are.
    """
    import pyarrow as pa

    fields, columns = [], []
    for field, column in zip(batch.schema, batch.columns, strict=True):
        with suppress(pa.ArrowInvalid, pa.ArrowNotImplementedError):
            column = column.cast(_simple_type(field.type)) if _simple_type(field.type) != field.type else column
        fields.append(pa.field(field.name, column.type))
        columns.append(column)
    return pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields))


def _simple_type(kind: "pa.DataType") -> "pa.DataType":
    """Return the plain type, at any depth."""
    import pyarrow as pa
    from pyarrow import types

    if types.is_dictionary(kind):
        return _simple_type(kind.value_type)
    if types.is_large_string(kind) or types.is_string_view(kind):
        return pa.string()
    if types.is_list(kind) or types.is_large_list(kind):
        return pa.list_(_simple_type(kind.value_type))
    if types.is_struct(kind):
        return pa.struct([pa.field(field.name, _simple_type(field.type)) for field in kind])
    return kind


def _binary(batch: "pa.RecordBatch") -> "pa.RecordBatch":
    """Return the batch with its texts as bytes, which costs no copy."""
    import pyarrow as pa

    return batch.cast(pa.schema([pa.field(field.name, _bytes_type(field.type)) for field in batch.schema]))


def _bytes_type(kind: "pa.DataType") -> "pa.DataType":
    """Return the type with bytes in place of text, at any depth."""
    import pyarrow as pa
    from pyarrow import types

    if types.is_string(kind):
        return pa.binary()
    if types.is_large_string(kind):
        return pa.large_binary()
    if types.is_list(kind):
        return pa.list_(_bytes_type(kind.value_type))
    if types.is_large_list(kind):
        return pa.large_list(_bytes_type(kind.value_type))
    if types.is_struct(kind):
        return pa.struct([pa.field(field.name, _bytes_type(field.type)) for field in kind])
    return kind


def _decoded(value: Any) -> Any:
    """Decode the texts in nested rows."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    if isinstance(value, list):
        return [_decoded(entry) for entry in value]
    if isinstance(value, dict):
        return {name: _decoded(entry) for name, entry in value.items()}
    return value
