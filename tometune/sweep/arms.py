"""The arms of a sweep over the pool: sources that each one leaves out or draws from alone, or rows that it adds.

Hydra needs the arms when it composes the sweep, so a preset asks for them with `${source_arms:KEY}`, and they are read
from the rows by source that `prepare` cached. Nothing is downloaded here.
"""

import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np
from omegaconf import DictConfig, OmegaConf

from tometune.common.distributed import is_first
from tometune.common.errors import UserError, hydra_text, some
from tometune.config.data import DataConfig, SourceConfig, SourceKind
from tometune.runs import inputs  # noqa: F401 -- its resolvers name a mix over one's own file

LARGEST = 7  # sources with an arm of their own, unless `sweep.sources` names them; the others share one


def source_arms(key: str, _root_: DictConfig) -> str:
    """Return the values of `data.pool.KEY` (`only` or `without`) as Hydra's sweeper reads them; the first is empty.

    Raises:
        UserError: the sources are not known, there is only one, `sweep.sources` names another, none is drawn from, or
            no arm has enough rows.
    """
    data, cache = _data_and_cache(_root_)
    if not data.draws:
        raise UserError(
            f"data.pool.{key}: the sweep varies the sources of the pool, and this mix draws no rows from one; choose a "
            "mix that does, e.g. data=mix_300k, files_300k or pydocs_3k"
        )
    groups = _groups(data, key == "only", list(_root_.sweep.sources), cache)
    if not groups:
        raise UserError(
            f"data.rows={data.rows}: no arm has enough rows to draw, so there is nothing to compare; set less"
        )
    return ",".join("[" + ",".join(hydra_text(name, "'") for name in group) + "]" for group in ([], *groups))


def added_rows(_root_: DictConfig) -> str:
    """Return the values of `data.pool.add`: 0, and those of `sweep.add` for which the pool has rows.

    Arms that it is too small for are named in one line. The size of a hub dataset is known once it was read.

    Raises:
        UserError: a file is missing, or the pool is too small for any arm.
    """
    asked, (data, cache) = [*_root_.sweep.add], _data_and_cache(_root_)
    pool, base = data.pool, data.base
    assert pool is not None
    if not (base.path and _is_known(pool, "data.pool", cache)):
        return ",".join(map(str, [0, *asked]))
    from tometune.data.draw import eligible, in_key_order
    from tometune.data.standardise import standardise

    source = standardise(pool, "data.pool", cache)
    rows = len(eligible(source, in_key_order(source, cache), standardise(base, "data.base", cache), None)[0])
    small = sorted(number for number in asked if number > rows)
    about = f"{pool.path or pool.id} has {rows:,} rows that {base.path} lacks"
    if len(small) == len(asked):
        fix = f"set e.g. sweep.add=[{rows}], or name" if rows else "name"
        raise UserError(f"sweep.add={asked}: {about}; {fix} a larger pool")
    if small and is_first():
        _print_once(f"{about}, so no arm adds {some([f'{number:,}' for number in small], 5)}")
    return ",".join(map(str, [0, *(number for number in asked if number <= rows)]))


def _data_and_cache(_root_: DictConfig) -> tuple[DataConfig, Path]:
    data = OmegaConf.to_object(OmegaConf.merge(DataConfig, OmegaConf.to_container(_root_.data, resolve=True)))
    assert isinstance(data, DataConfig)
    return data, Path(_root_.paths.cache).expanduser().resolve()


def _is_known(source: SourceConfig, key: str, cache: Path) -> bool:
    """Whether the rows of a source can be counted without a download."""
    from tometune.data.standardise import is_cached

    with suppress(UserError):  # the hub cannot be asked for the commit
        return source.kind is not SourceKind.hub or is_cached(source, key, cache)
    return False


def _groups(data: DataConfig, only: bool, named: Sequence[str], folder: Path) -> list[list[str]]:
    """Return the sources of each arm: the named or the largest ones, then all others together.

    An arm that would have too few rows is left out, with a line on stderr. Rows that a filter drops are not known here.
    """
    from tometune.data.draw import check_source, in_key_order, starts_group
    from tometune.data.filters import by_source
    from tometune.data.standardise import standardise

    assert data.pool is not None
    whole_base = data.base.rows is None
    if not _is_known(data.pool, "data.pool", folder) or (whole_base and not _is_known(data.base, "data.base", folder)):
        if named:
            return [[name] for name in named]
        raise UserError(
            f"data.pool.id={data.pool.id}: its sources are not known yet; run tometune prepare with this "
            "data first, or name them with sweep.sources=[…]"
        )
    pool = standardise(data.pool, "data.pool", folder)
    base = standardise(data.base, "data.base", folder) if _is_known(data.base, "data.base", folder) else None
    order = in_key_order(pool, folder)
    keys = pool.keys[order]
    usable = order[starts_group(keys) & ~np.isin(keys, keys[:0] if base is None else base.keys)]
    rows = by_source(pool, usable)
    if len(pool.names) < 2:
        raise UserError(
            f"data.pool: all its rows are from one source ({', '.join(pool.names)}); a sweep over sources needs a "
            "column source that names where each row is from"
        )
    for name in named:
        check_source(f"sweep.sources: {name}", name, pool.names)
    added = data.pool.add or 1
    if data.pool.add is None and data.rows is not None:
        added = data.rows - (min(len(base.rows), data.rows) if whole_base and base else data.base.rows or 0)
    if added <= 0:
        raise UserError(f"data.rows={data.rows}: the base fills the mix, so no source is drawn; set data.base.rows=…")

    def drawn(names: Sequence[str]) -> int:
        """Return the rows that an arm can draw: at least these remain when rows are held out of the pool."""
        count = sum(rows[name] for name in rows if (name in names) is only)
        lost = (data.held_out.rows or 0) * data.held_out.pool * count / len(usable)
        return int(count - lost - 3 * lost**0.5)

    own = list(named) or [name for name in rows if not only or drawn([name]) >= added][:LARGEST]
    others = [name for name in rows if name not in own]
    groups = []
    for group in [*([name] for name in own), *([others] if others else [])]:
        if (count := drawn(group)) >= added:
            groups.append(group)
        else:
            arm = group[0] if len(group) == 1 else f"the {len(group)} other sources"
            _print_once(f"no arm for {arm}: {max(0, count):,} rows to draw from, and the mix needs {added:,}")
    return groups


@cache
def _print_once(line: str) -> None:  # Hydra asks for the arms several times
    print(line, file=sys.stderr)


# At import: the verbs that compose a sweep import this module for it.
OmegaConf.register_new_resolver("source_arms", source_arms, replace=True)
OmegaConf.register_new_resolver("added_rows", added_rows, replace=True)
