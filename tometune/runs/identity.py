"""The identity of a run: everything that can change its result, as plain values and as a hash.

It covers the config without tracking, paths and labels, the number format that this machine computes in, and a
fingerprint of each input (file contents, hub revision) instead of its location. It contains no time stamps. The marks
`NOT_IDENTITY`, `SINCE_DEFAULT` and `identity_if` on the fields in `tometune/config/` decide which keys are left out.
"""

import json
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass, replace
from enum import Enum
from hashlib import sha256
from typing import Any, cast

from omegaconf import OmegaConf

from tometune.config.data import DataConfig, PoolOrder, ScorerKind, SourceConfig, without_unused
from tometune.config.model import Backend, LoraConfig, ModelConfig
from tometune.config.root import Config
from tometune.config.validators import SINCE_DEFAULT
from tometune.models.machine import replaces_unsloth, resolve_precision

MEANING = 9
"""Raised when a release makes the same config give another result, so that runs of older releases are not reused."""


def identity(config: Config, fingerprints: Mapping[str, str]) -> dict[str, Any]:
    """Return what can change the result of a run, as plain values for hashing; `fingerprints` as in `RunInputs`."""
    groups = {name: content_of(getattr(config, name)) for name in ("trainer", "eval", "seeds")}
    lora = config.lora if config.lora.enabled else LoraConfig(enabled=False)
    groups |= {"data": _data_content(config.data), "lora": content_of(lora)}
    return {"meaning": MEANING, "model": model_content(config.model), **groups, "inputs": dict(fingerprints)}


def model_content(model: ModelConfig) -> dict[str, Any]:
    """Return the model group with `precision=auto` resolved: bf16, fp16 and fp32 runs are different runs.

    `backend=auto` counts as such, except where it no longer stands for what it did when runs were made with it.
    """
    content: dict[str, Any] = content_of(model) | {"precision": resolve_precision(model.precision).value}
    return content | ({"backend": Backend.transformers.value} if replaces_unsloth(model) else {})


def _data_content(data: DataConfig) -> Any:
    """Return the data group. `pool.draw` counts if the pool would be part of it without: rows are held out of it.

    With `data.rows`, a mix that draws no rows is one whose base is large enough, and `draw` changes nothing.
    """
    content, pool = content_of(_without_unused_scores(without_unused(data))), data.pool
    if pool is not None and data.rows is None and pool.add is None and data.held_out.rows != 0 and data.held_out.pool:
        content["pool"]["draw"] = pool.draw
    return content


def _without_unused_scores(data: DataConfig) -> DataConfig:
    """Return the config of a mix without the names of score columns by which no row is filtered or ranked."""
    default, pool, filtered = SourceConfig().score, data.pool, data.filters.min_score is not None
    if not (filtered and data.filters.base):
        data = replace(data, base=replace(data.base, score=default))
    ranked = pool is not None and pool.order is PoolOrder.best and data.scorer.kind is ScorerKind.column
    if pool is not None and not (filtered or ranked):
        data = replace(data, pool=replace(pool, score=default))
    return data


def content_of(value: Any) -> Any:
    """Turn dataclasses into dicts of those fields that are part of a run's identity; enums become their values."""
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
