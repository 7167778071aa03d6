"""The arms of a sweep over sources: which source of the pool each one leaves out, or draws from alone.

Hydra needs the arms when it composes the sweep, so a preset asks for them with `${source_arms:KEY}`, and they are read
from the rows by source that `prepare` cached. Nothing is downloaded here.
"""

import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np
from omegaconf import DictConfig, OmegaConf

from tometune.common.errors import UserError
from tometune.config.data import DataConfig, SourceConfig, SourceKind

LARGEST = 7  # sources with an arm of their own, unless `sweep.sources` names them; the others share one


def source_arms(key: str, _root_: DictConfig) -> str:
    """Return the values of `data.pool.KEY` (`only` or `without`) as Hydra's sweeper reads them; the first is empty.

    Raises:
        UserError: the sources are not known, there is only one, `sweep.sources` names another, or none is drawn from.
    """
    data = OmegaConf.to_object(OmegaConf.merge(DataConfig, OmegaConf.to_container(_root_.data, resolve=True)))
    assert isinstance(data, DataConfig)
    if not data.draws:
        raise UserError(
            f"data.pool.{key}: the sweep varies the sources of the pool, and this mix draws no rows from one; choose a "
            "mix that does, e.g. data=mix_300k, files_300k or pydocs_3k"
        )
    groups = _groups(data, key == "only", list(_root_.sweep.sources), Path(_root_.paths.cache).expanduser().resolve())
    return ",".join("[" + ",".join(map(_quoted, group)) + "]" for group in ([], *groups))


def _groups(data: DataConfig, only: bool, named: Sequence[str], folder: Path) -> list[list[str]]:
    """Return the sources of each arm: the named or the largest ones, then all others together.

    An arm that would have too few rows is left out, with a line on stderr. Rows that a filter drops are not known here.
    """
    from tometune.data.draw import check_source, in_key_order, starts_group
    from tometune.data.filters import by_source
    from tometune.data.standardise import is_cached, standardise

    def known(source: SourceConfig, key: str) -> bool:
        with suppress(UserError):  # the hub cannot be asked for the commit
            return source.kind is not SourceKind.hub or is_cached(source, key, folder)
        return False

    assert data.pool is not None
    whole_base = data.base.rows is None
    if not known(data.pool, "data.pool") or (whole_base and not known(data.base, "data.base")):
        if named:
            return [[name] for name in named]
        raise UserError(
            f"data.pool.id={data.pool.id}: its sources are not known yet; run tometune prepare with this "
            "data first, or name them with sweep.sources=[…]"
        )
    pool = standardise(data.pool, "data.pool", folder)
    base = standardise(data.base, "data.base", folder) if known(data.base, "data.base") else None
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
    added = data.rows - (min(len(base.rows), data.rows) if whole_base and base else data.base.rows or 0)
    if added <= 0:
        raise UserError(f"data.rows={data.rows}: the base fills the mix, so no source is drawn; set data.base.rows=…")

    def drawn(names: Sequence[str]) -> int:
        """Return the rows that an arm can draw: at least these remain when rows are held out of the pool."""
        count = sum(rows[name] for name in rows if (name in names) is only)
        lost = data.held_out.rows * count / len(usable)
        return int(count - lost - 3 * lost**0.5)

    own = list(named) or [name for name in rows if not only or drawn([name]) >= added][:LARGEST]
    others = [name for name in rows if name not in own]
    groups = [*([name] for name in own), *([others] if others else [])]
    for group in groups:
        if drawn(group) < added:
            arm = group[0] if len(group) == 1 else f"the {len(group)} other sources"
            _print_once(f"no arm for {arm}: {max(0, drawn(group)):,} rows to draw from, and the mix needs {added:,}")
    return [group for group in groups if drawn(group) >= added]


@cache
def _print_once(line: str) -> None:  # Hydra asks for the arms several times
    print(line, file=sys.stderr)


def _quoted(name: str) -> str:
    """Return a name as Hydra quotes it: backslashes in front of a quote are doubled."""
    escaped = re.sub(r"(\\*)('|$)", lambda found: 2 * found[1] + (found[2] and f"\\{found[2]}"), name)
    return f"'{escaped}'"


# At import: the verbs that compose a sweep import this module for it.
OmegaConf.register_new_resolver("source_arms", source_arms, replace=True)
