"""The arms of a sweep over the pool: sources that each one leaves out or draws from alone, or rows that it adds.

Hydra needs the arms when it composes the sweep, so a preset asks for them with `${source_arms:KEY}`, and they are read
from the rows by source that `prepare` cached. Nothing is downloaded here.
"""

import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from omegaconf import DictConfig, OmegaConf

from tometune.common.distributed import is_first
from tometune.common.errors import UserError, some
from tometune.config.data import PoolConfig, SourceConfig, SourceKind
from tometune.runs import inputs  # noqa: F401 -- its resolvers name a mix over one's own file

_printed: set[str] = set()
LARGEST = 7  # sources with an arm of their own, unless `sweep.sources` names them; the others share one


def source_arms(key: str, _root_: DictConfig) -> str:
    """Return the values of `data.pool.KEY` (`only` or `without`) as Hydra's sweeper reads them; the first is empty.

    Raises:
        UserError: the sources are not known, there is only one, or `sweep.sources` names another.
    """
    pool = OmegaConf.to_object(OmegaConf.merge(PoolConfig, OmegaConf.to_container(_root_.data.pool, resolve=True)))
    assert isinstance(pool, PoolConfig)
    if not pool.draws:
        raise UserError(
            f"data.pool.{key}: the sweep varies the sources of the pool, and this mix draws no rows from one; choose a "
            "mix that does, e.g. data=mix_300k, files_300k or pydocs_3k"
        )
    added = pool.add or _root_.data.rows - (_root_.data.base.rows or 0) if key == "only" else 1
    groups = _groups(pool, list(_root_.sweep.sources), added, Path(_root_.paths.cache).expanduser().resolve())
    return ",".join("[" + ",".join(map(_quoted, group)) + "]" for group in ([], *groups))


def added_rows(_root_: DictConfig) -> str:
    """Return the values of `data.pool.add`: 0, and those of `sweep.add` for which the pool has rows.

    Arms that it is too small for are named in one line. The size of a hub dataset is known once it was read.

    Raises:
        UserError: a file is missing, or the pool is too small for any arm.
    """
    asked, cache = [*_root_.sweep.add], Path(_root_.paths.cache).expanduser().resolve()
    pool, base = (
        OmegaConf.to_object(OmegaConf.merge(schema, OmegaConf.to_container(_root_.data[name], resolve=True)))
        for schema, name in ((PoolConfig, "pool"), (SourceConfig, "base"))
    )
    assert isinstance(pool, PoolConfig)
    assert isinstance(base, SourceConfig)
    if not (base.path and _is_known(pool, cache)):
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
    if small and about not in _printed and is_first():
        _printed.add(about)  # Hydra asks again for the runs
        print(f"{about}, so no arm adds {some([f'{number:,}' for number in small], 5)}", file=sys.stderr)
    return ",".join(map(str, [0, *(number for number in asked if number <= rows)]))


def _is_known(pool: PoolConfig, cache: Path) -> bool:
    """Whether the rows of a pool can be counted without a download."""
    from tometune.data.standardise import is_cached

    with suppress(UserError):  # the hub cannot be asked for the commit
        return pool.kind is not SourceKind.hub or is_cached(pool, "data.pool", cache)
    return False


def _groups(pool: PoolConfig, named: Sequence[str], fewest: int, cache: Path) -> list[list[str]]:
    """Return the sources of each arm: the named or the largest ones, then all others together.

    Without names, a source of less than `fewest` rows has no arm of its own, nor have the others together.
    """
    from tometune.data.draw import check_source
    from tometune.data.filters import by_source
    from tometune.data.standardise import standardise

    if not _is_known(pool, cache):
        if named:
            return [[name] for name in named]
        raise UserError(
            f"data.pool.id={pool.id}: its sources are not known yet; run python -m tometune.prepare with this data "
            "first, or name them with sweep.sources=[…]"
        )
    source = standardise(pool, "data.pool", cache)
    rows = by_source(source, np.arange(len(source.rows)))
    if len(rows) < 2:
        raise UserError(
            f"data.pool: all its rows are from one source ({', '.join(rows)}); a sweep over sources needs a column "
            "source that names where each row is from"
        )
    for name in named:
        check_source(f"sweep.sources: {name}", name, list(rows))
    own = list(named) or [name for name, count in rows.items() if count >= fewest][:LARGEST]
    others = [name for name in rows if name not in own]
    enough = sum(rows[name] for name in others) >= fewest
    return [*([name] for name in own), *([others] if enough else [])]


def _quoted(name: str) -> str:
    """Return a name as Hydra quotes it: backslashes in front of a quote are doubled."""
    escaped = re.sub(r"(\\*)('|$)", lambda found: 2 * found[1] + (found[2] and f"\\{found[2]}"), name)
    return f"'{escaped}'"


# At import: the verbs that compose a sweep import this module for it.
OmegaConf.register_new_resolver("source_arms", source_arms, replace=True)
OmegaConf.register_new_resolver("added_rows", added_rows, replace=True)
