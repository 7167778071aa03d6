"""Settings that a run does not use: reset to their defaults in a sweep, an error in a single run.

`+sweep=random_vs_best data.scorer.kind=fineweb_edu` sets a scorer for three mixes, of which one ranks its pool. In a
sweep the setting is reset for the others, so that it is neither an error nor part of their identity. In a single run it
is an error, because whoever set it expects an effect.
"""

from dataclasses import replace
from typing import TypeVar

from tometune.common.errors import ConfigError
from tometune.config.data import (
    DataConfig,
    FiltersConfig,
    NearDedupConfig,
    PoolOrder,
    ScorerConfig,
    ScorerKind,
    SourceConfig,
)
from tometune.config.model import LoraConfig

Source = TypeVar("Source", bound=SourceConfig)


def without_unused_pool(data: DataConfig) -> DataConfig:
    """Return the config with `pool=null` if no rows are drawn from the pool."""
    return data if data.pool is None or data.pool.draw else replace(data, pool=None)


def without_unused_data(data: DataConfig) -> DataConfig:
    """Return the config of a mix with its unused settings at their defaults."""
    data = without_unused_pool(data)
    filters, near = data.filters, data.near_dedup
    if replace(filters, base=False) == FiltersConfig() or (data.pool is None and not filters.base):
        filters = FiltersConfig()
    if near.threshold is None or (data.pool is None and not near.base):
        near = NearDedupConfig()
    ranked = data.pool is not None and data.pool.order is PoolOrder.best
    return replace(data, filters=filters, near_dedup=near, scorer=data.scorer if ranked else ScorerConfig())


def without_unused_lora(lora: LoraConfig) -> LoraConfig:
    """Return the config of an adapter, at its defaults if none is trained."""
    return lora if lora.enabled else LoraConfig(enabled=False)


def identity_of(data: DataConfig) -> DataConfig:
    """Return the settings of a mix that identify a run: `without_unused_data`, and no unused score columns."""
    data = without_unused_data(data)
    filtered = data.filters.min_score is not None
    base = data.base if filtered and data.filters.base else _without_score(data.base)
    pool = data.pool
    ranked = pool is not None and pool.order is PoolOrder.best and data.scorer.kind is ScorerKind.column
    return replace(data, base=base, pool=pool if pool is None or filtered or ranked else _without_score(pool))


def _without_score(source: Source) -> Source:
    return replace(source, score=SourceConfig().score)


def check_used(data: DataConfig, lora: LoraConfig, keys: set[str]) -> None:
    """Check that a single run has a pool or an adapter if keys of it are set.

    Raises:
        ConfigError: with one line for each of the full `keys` that the command line sets without effect.
    """
    problems = []
    for key in sorted(keys):
        if data.pool is not None and not data.pool.draw and f"{key}.".startswith("data.pool."):
            fix = "choose a mix that does, e.g. data=mix_200k, files_200k or pydocs_2k"
            problems.append(f"{key}: {data.name} draws no rows from a pool; {fix}")
        if not lora.enabled and key.startswith("lora.") and key != "lora.enabled":
            problems.append(f"{key}: is ignored without an adapter; leave it out, or choose lora=default")
    if problems:
        raise ConfigError(problems)
