"""What a mix does not read of its own config: of no account where several mixes share a command line.

`+sweep=random_vs_best data.scorer.kind=fineweb_edu` sets a scorer for three mixes, of which one ranks its pool. In a
sweep, what a mix does not read is put back to its default: it is neither an error nor part of the run's identity. For a
single mix it is an error, since whoever set it expects something of it.
"""

from dataclasses import replace
from typing import TypeVar

from tometune.common.errors import ConfigError
from tometune.config.data import DataConfig, PoolOrder, SourceConfig
from tometune.config.filters import FiltersConfig, NearDedupConfig, ScorerConfig, ScorerKind

POOL = "data.pool"

Source = TypeVar("Source", bound=SourceConfig)


def without_undrawn_pool(data: DataConfig) -> DataConfig:
    """Return the config with `pool=null` where no rows are drawn from the pool."""
    return data if data.pool is None or data.pool.draw else replace(data, pool=None)


def settled(data: DataConfig) -> DataConfig:
    """Return the config with all that is not read at its default."""
    data = without_undrawn_pool(data)
    filters, near = data.filters, data.near_dedup
    if replace(filters, base=False) == FiltersConfig() or (data.pool is None and not filters.base):
        filters = FiltersConfig()
    if near.threshold is None or (data.pool is None and not near.base):
        near = NearDedupConfig()
    ranked = data.pool is not None and data.pool.order is PoolOrder.best
    return replace(data, filters=filters, near_dedup=near, scorer=data.scorer if ranked else ScorerConfig())


def for_identity(data: DataConfig) -> DataConfig:
    """Return what of a mix's config counts: beside `settled`, the columns of scores only where rows go by them."""
    data = settled(data)
    filtered = data.filters.min_score is not None
    base = data.base if filtered and data.filters.base else _unscored(data.base)
    pool = data.pool
    ranked = pool is not None and pool.order is PoolOrder.best and data.scorer.kind is ScorerKind.column
    return replace(data, base=base, pool=pool if pool is None or filtered or ranked else _unscored(pool))


def _unscored(source: Source) -> Source:
    """Return a source with the default column of scores."""
    return replace(source, score=SourceConfig().score)


def check_pool_is_drawn(data: DataConfig, keys: set[str]) -> None:
    """Check that nothing of the pool is set for a mix that is the base alone.

    Args:
        data: of the run.
        keys: full keys that the command line sets.

    Raises:
        ConfigError: with one line for each key.
    """
    if data.pool is not None and not data.pool.draw:
        set_keys = sorted(key for key in keys if f"{key}.".startswith(f"{POOL}."))
        if set_keys:
            raise ConfigError([f"{key}: {data.name} draws no rows from a pool; choose a mix that does, e.g. "
                "data=mix_200k, files_200k or pydocs_2k" for key in set_keys])  # fmt: skip
