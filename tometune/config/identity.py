"""Marks schema fields by what they have to do with the identity of a run."""

from typing import Any

NOT_IDENTITY = {"identity": False}
"""Metadata of a field that cannot change a result (a label, a place, logging): left out of the run's hash."""

SINCE_DEFAULT = {"identity": "unless default"}
"""Metadata of a field that came later, and whose default is what was done before: at its default it is left out of the
hash, so that the runs made before it are still the same runs."""


def identity_if(*values: Any) -> dict[str, Any]:
    """Return the metadata of a field that is part of a run's identity only where it has one of these values."""
    return {"identity": values}
