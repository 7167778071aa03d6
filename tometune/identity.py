"""Run identity: what can change the result of a run, as values and as a hash.

It covers the config without tracking, paths and labels, and a fingerprint of each input (file contents, hub revision,
version of the documentation) in place of where it lies. No time stamps.
"""

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from hashlib import sha256
from typing import Any, cast

from omegaconf import OmegaConf

from tometune.config.identity import in_identity
from tometune.config.root import Config

MEANING = 1
"""Raised when a release makes the same config give another result, so that old runs are not taken for new ones."""


def identity(config: Config, fingerprints: Mapping[str, str]) -> dict[str, Any]:
    """Return what can change the result of a run, as plain values ready for hashing.

    Args:
        config: the whole config.
        fingerprints: content of each input by key, e.g. `{"model": …, "data.base": …, "eval.tasks.qa": …}`.
    """
    groups = {name: content_of(getattr(config, name)) for name in ("model", "data", "lora", "trainer", "eval", "seeds")}
    return {"meaning": MEANING, **groups, "inputs": dict(fingerprints)}


def content_of(value: Any) -> Any:
    """Turn dataclasses into dicts of the fields that are part of a run's identity (see `tometune.config.identity`)."""
    if is_dataclass(value):
        values = {field: getattr(value, field.name) for field in fields(value)}
        kept = {f: v for f, v in values.items() if in_identity(f.metadata.get("identity", True), v)}
        return {field.name: content_of(inner) for field, inner in kept.items()}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {key: content_of(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [content_of(entry) for entry in value]
    return value


def plain(config: Config) -> dict[str, Any]:
    """Return the whole config as plain values: dicts, lists, text, numbers."""
    values = OmegaConf.to_container(OmegaConf.structured(config), resolve=True, enum_to_str=True)
    return cast(dict[str, Any], values)


def content_hash(content: Mapping[str, Any]) -> str:
    """Return the sha256, in hex, of the canonical JSON of `content`."""
    return sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
