"""Run identity: what can change the result of a run, as values and as a hash.

It covers the config without tracking, paths and labels, and a fingerprint of each input (file contents, hub revision,
version of the documentation) in place of where it lies. No time stamps.
"""

import json
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from hashlib import sha256
from typing import Any, cast

from omegaconf import OmegaConf

from tometune.config.identity import SINCE_DEFAULT
from tometune.config.lora import settled_lora
from tometune.config.root import Config
from tometune.config.settled import for_identity

MEANING = 4
"""Raised when a release makes the same config give another result, so that old runs are not taken for new ones."""


def identity(config: Config, fingerprints: Mapping[str, str]) -> dict[str, Any]:
    """Return what can change the result of a run, as plain values ready for hashing.

    Args:
        config: the whole config.
        fingerprints: content of each input by key, e.g. `{"model": …, "data.base": …, "eval.tasks.qa": …}`.
    """
    groups = {name: content_of(getattr(config, name)) for name in ("model", "trainer", "eval", "seeds")}
    read = {"data": content_of(for_identity(config.data)), "lora": content_of(settled_lora(config.lora))}
    return {"meaning": MEANING, **read, **groups, "inputs": dict(fingerprints)}


def content_of(value: Any) -> Any:
    """Turn dataclasses into dicts of the fields that are part of a run's identity (`tometune.config.identity`)."""
    if is_dataclass(value):
        return {f.name: content_of(getattr(value, f.name)) for f in fields(value) if _counts(f, value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {key: content_of(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [content_of(entry) for entry in value]
    return value


def _counts(entry: Field[Any], owner: Any) -> bool:
    """Tell whether a field of a dataclass is part of the identity."""
    if entry.metadata.get("identity") == SINCE_DEFAULT["identity"]:
        default = entry.default if entry.default_factory is MISSING else entry.default_factory()
        return bool(getattr(owner, entry.name) != default)
    mark = entry.metadata.get("identity", True)
    return getattr(owner, entry.name) in mark if isinstance(mark, tuple) else bool(mark)


def plain(config: Config) -> dict[str, Any]:
    """Return the whole config as plain values: dicts, lists, text, numbers."""
    values = OmegaConf.to_container(OmegaConf.structured(config), resolve=True, enum_to_str=True)
    return cast(dict[str, Any], values)


def content_hash(content: Mapping[str, Any]) -> str:
    """Return the sha256, in hex, of the canonical JSON of `content`."""
    return sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
