"""What is said where a base or a pool has too few rows: how many there were, where they went, the fix."""

from typing import Any

from tometune.common.errors import UserError
from tometune.config.data import DataConfig, SourceConfig, SourceKind
from tometune.data.clean.masks import NEAR, Filtered
from tometune.data.draw import Short
from tometune.data.standardise import Standardised

Counts = dict[str, dict[str, int]]


def check_base(base: Standardised, filtered: Filtered, shared: int, wanted: int, config: DataConfig) -> None:
    """Check that the base has the rows it should have; `shared` of them are in the evaluation, and dropped for that.

    Raises:
        UserError: it has fewer, or none.
    """
    not_empty(base, config.base, "data.base")
    if not len(base.rows):
        raise UserError(
            f"data.base: none of its {_rows(base.read)} is usable ({_total(base.dropped):,} dropped); "
            f"{_why(base.dropped)}; a row needs a turn of the user and an answer of the assistant"
        )
    found = int(filtered.keep.sum())
    why = "; ".join([_why(base.dropped), *([_why(filtered.counts, "filtered")] if filtered.counts else [])])
    if shared:
        why += f"; data.contamination=drop: {shared:,}"
    if not found:
        raise UserError(f"data.base: no row is left ({why}); loosen data.filters, or set data.filters.base=false")
    if found < wanted:
        alone = config.pool is None and config.base.rows == config.rows
        fix = f"data.rows={found}" if alone else f"data.base.rows={found}"
        raise UserError(
            f"data.base.rows={wanted}: the base has {found:,} usable rows of {base.read:,} ({why}); set {fix}"
        )


def check_pool(config: DataConfig, added: int) -> None:
    """Check that there is a pool to draw from, and one number of rows.

    Raises:
        UserError: there is none, or there are two.
    """
    if config.pool is None:
        raise UserError(
            f"data.rows={config.rows}: the base gives {config.rows - added} and there is no pool for the other {added}"
            f"; set data.pool, or data.rows={config.rows - added}"
        )
    if config.pool.rows is not None:
        raise UserError(
            f"data.pool.rows={config.pool.rows}: is not read, data.rows={config.rows} says how many rows are drawn; "
            "set data.pool.rows=null"
        )


def not_empty(source: Standardised, config: SourceConfig, key: str) -> None:
    """Check that there was a row at all to read.

    Raises:
        UserError: there was none.
    """
    if source.read:
        return
    place = f"{key}.path={config.path}" if config.kind is SourceKind.files else f"{key}.id={config.id}"
    raise UserError(f"{place}: is empty, there is no row in it; name one that holds conversations")


def of_pool(pool: Standardised, facts: dict[str, Any], short: Short, added: int, config: DataConfig) -> UserError:
    """Return the error for a pool that has too few rows.

    Args:
        pool: its rows.
        facts: what was counted on the way to the eligible ones.
        short: what runs out.
        added: rows that are wanted of it.
        config: of the mix.
    """
    excluded = facts["excluded"]
    steps = {"in the base": excluded["in_base"], "repeats": excluded["repeats"], "dropped": _total(pool.dropped)}
    if facts["filtered"]:
        steps["filtered"] = _total(facts["filtered"])
    if facts.get("contaminated_rows"):
        steps["data.contamination=drop"] = facts["contaminated_rows"]
    if NEAR in facts:
        steps["near-duplicates"] = sum(facts[NEAR].values())
    went = ", ".join(f"{what}: {count:,}" for what, count in steps.items())
    fewer = config.rows - added + short.rows
    limit = f"{short.rows:,} can be added {short.reason} " if short.reason else ""
    return UserError(
        f"data.pool: {facts['eligible']:,} usable rows of {pool.read:,} ({went}), but {limit}data.rows={config.rows} "
        f"needs {added:,} of them; add rows to the pool, or set data.rows={fewer}"
    )


def _rows(count: int) -> str:
    """Return a number of rows in words."""
    return f"{count:,} row{'s' if count != 1 else ''}"


def _why(counts: Counts, what: str = "dropped") -> str:
    """Say what was dropped and why."""
    reasons = {reason: sum(by_source.values()) for reason, by_source in counts.items()}
    return f"{what}: " + (", ".join(f"{reason} {count:,}" for reason, count in reasons.items()) or "none")


def _total(counts: Counts) -> int:
    """Return the sum over reasons and sources."""
    return sum(sum(by_source.values()) for by_source in counts.values())
