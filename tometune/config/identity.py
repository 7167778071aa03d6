"""Marks schema fields that cannot change a result: labels, locations, logging."""

from typing import Any

NOT_IDENTITY = {"identity": False}
"""Metadata of such a field; `tometune.run` leaves it out of the run's hash."""


def identity_if(*values: Any) -> dict[str, Any]:
    """Return the metadata of a field that is part of a run's identity only where it has one of these values."""
    return {"identity": values}


def in_identity(mark: bool | tuple[Any, ...], value: Any) -> bool:
    """Tell whether a field is part of a run's identity, by its metadata and its value."""
    return value in mark if isinstance(mark, tuple) else mark
