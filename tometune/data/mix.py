"""Mixes: the whole base, then random rows of the pool, nested and disjoint.

For one seed mix_100k ⊂ mix_200k ⊂ mix_300k: the pool's rows are put in one seeded order, of which a larger mix takes a
longer beginning. Left out before that: pool rows whose normalised text is in the base, and all but the first of pool
rows that share it. Rows are put in the order of their keys before the seeded one, so neither the names of the pool's
files nor how its rows are spread over them change which texts are drawn.

A base is taken as it is, with the rows that repeat each other. One with more rows than `data.base.rows` gives that many
of them by a seeded draw, for trying things out; then too, pool rows whose text is anywhere in the base are left out.
"""

import logging
from collections import Counter
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, concatenate_datasets

from tometune.config.data import Contamination, DataConfig, SourceConfig, SourceKind
from tometune.config.errors import UserError
from tometune.data.contamination.overlaps import HeldOut, overlapping
from tometune.data.standardise import Standardised, standardise
from tometune.seeding import stream

log = logging.getLogger(__name__)

EXAMPLES = 5
"""Rows that a mix keeps of what was left out for one reason."""


@dataclass(frozen=True)
class Mix:
    """Exactly the configured number of conversations, in a fixed order."""

    name: str
    seed: int
    dataset: Dataset
    """Columns `source` and `messages` ([{role, content}]); rows as in `row_ids`."""

    row_ids: list[str]
    """`base:<key>` or `pool:<key>`, where the key is the 128-bit hash of the normalised text, in hex."""

    digest: str
    """sha256 over the row ids in order, 20 hex digits."""

    sources: dict[str, int]
    """Rows by source, most first."""

    facts: dict[str, Any]
    """What was read, dropped, mended and excluded, for `base` and `pool`."""

    examples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """By reason, a few of the rows that were left out: `origin`, `source`, `messages`."""

    def manifest(self) -> dict[str, Any]:
        """Return what mix.json holds: everything but the texts."""
        counts = {"rows": len(self.row_ids), "sources": self.sources, **self.facts}
        return {"name": self.name, "seed": self.seed, "digest": self.digest, **counts, "row_ids": self.row_ids}


def build_mix(config: DataConfig, seed: int, cache: Path, held_out: HeldOut | None = None) -> Mix:
    """Build the mix of a config; the same config, inputs and seed give the same rows on any machine.

    Args:
        config: base, pool and the exact number of rows.
        seed: of the draw, `seeds.data`.
        cache: root of the cache; standardised sources are kept there.
        held_out: the texts of the evaluation, which `data.contamination=drop` cannot do without; see `inputs.mix_of`.

    Raises:
        UserError: a source cannot be read or has too few usable rows; says how many there were.
    """
    base = standardise(config.base, "data.base", cache)
    examples: dict[str, list[dict[str, Any]]] = {}
    tainted, left_out = _contaminated(base, "base", config, held_out, cache, examples)
    clean = np.flatnonzero(~tainted)
    wanted = config.base.rows if config.base.rows is not None else len(clean)
    _enough(base, wanted, config, len(clean))
    base_order = clean[_draw(_keys(base)[clean], wanted, seed, "base")] if len(clean) > wanted else clean
    drawn = [(base, base_order)]
    row_ids = _ids("base", _keys(base)[base_order])
    facts: dict[str, Any] = {"base": {**_facts(base), **left_out, "rows": wanted}}
    added = config.rows - wanted
    if added < 0:
        raise UserError(f"data.rows={config.rows}: is less than the base's {wanted}; set data.base.rows={config.rows}")
    if added:
        pool, chosen, facts["pool"] = _add(config, added, base, seed, cache, held_out, examples)
        drawn.append((pool, chosen))
        row_ids += _ids("pool", _keys(pool)[chosen])
    dataset = concatenate_datasets([part.rows.select(order).remove_columns("key") for part, order in drawn])
    digest = sha256("\n".join(row_ids).encode()).hexdigest()[:20]
    return Mix(config.name, seed, dataset, row_ids, digest, _sources(drawn), facts, examples)


def _add(
    config: DataConfig,
    added: int,
    base: Standardised,
    seed: int,
    cache: Path,
    held_out: HeldOut | None,
    examples: dict[str, list[dict[str, Any]]],
) -> tuple[Standardised, np.ndarray, dict[str, Any]]:
    """Draw rows from the pool; returns it, the numbers of the rows and what was counted on the way."""
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
    pool = standardise(config.pool, "data.pool", cache)
    _not_empty(pool, config.pool, "data.pool")
    keys = _keys(pool)
    _, first = np.unique(keys, return_index=True)
    in_base = np.isin(keys, _keys(base))
    eligible = first[~in_base[first]]  # np.unique returns them in order of their keys, whatever the files' order
    tainted, left_out = _contaminated(pool, "pool", config, held_out, cache, examples)
    eligible = eligible[~tainted[eligible]]
    excluded = {"in_base": int(in_base.sum()), "repeats": len(keys) - len(first)}
    if len(eligible) < added:
        told = _told(left_out)
        raise UserError(
            f"data.pool: {len(eligible):,} usable rows of {pool.read:,} (in the base: {excluded['in_base']:,}, "
            f"repeats: {excluded['repeats']:,}, dropped: {_total(pool.dropped):,}{told}), but data.rows={config.rows} "
            f"needs {added:,} of them; add rows to the pool, or set data.rows={config.rows - added + len(eligible)}"
        )
    chosen = eligible[stream(seed, "data").permutation(len(eligible))[:added]]
    facts = {**_facts(pool), **left_out, "excluded": excluded, "eligible": len(eligible), "rows": added}
    return pool, chosen, facts


def _contaminated(
    source: Standardised,
    origin: str,
    config: DataConfig,
    held_out: HeldOut | None,
    cache: Path,
    examples: dict[str, list[dict[str, Any]]],
) -> tuple[np.ndarray, dict[str, Any]]:
    """Return which rows are to be left out for what they share with the evaluation, and the counts of that.

    A few of the rows are added to `examples`.
    """
    if config.contamination is not Contamination.drop:
        return np.zeros(len(source.rows), dtype=bool), {}
    if held_out is None:
        raise ValueError("data.contamination=drop needs the texts of the evaluation")
    tainted, counts = overlapping(source, held_out, cache)
    for number in np.flatnonzero(tainted)[:EXAMPLES].tolist():
        row = source.rows[number]
        examples.setdefault("contaminated", []).append(
            {"origin": origin, "source": row["source"], "messages": row["messages"]}
        )
    return tainted, {"contaminated": counts, "contaminated_rows": int(tainted.sum())}


def _told(left_out: dict[str, Any]) -> str:
    """Say how many rows went for what they share with the evaluation, where any did."""
    count = left_out.get("contaminated_rows")
    return f", data.contamination=drop: {count:,}" if count else ""


def _enough(base: Standardised, wanted: int, config: DataConfig, found: int) -> None:
    """Check that the base has the rows it should have."""
    _not_empty(base, config.base, "data.base")
    if len(base.rows) == 0:
        raise UserError(
            f"data.base: none of its {_rows(base.read)} is usable ({_total(base.dropped):,} dropped); {_why(base)}; "
            "a row needs a turn of the user and an answer of the assistant"
        )
    if found < wanted:
        alone = config.pool is None and config.base.rows == config.rows
        fix = f"data.rows={found}" if alone else f"data.base.rows={found}"
        why = _why(base) + _told({"contaminated_rows": len(base.rows) - found})
        raise UserError(
            f"data.base.rows={wanted}: the base has {found:,} usable rows of {base.read:,} ({why}); set {fix}"
        )


def _not_empty(source: Standardised, config: SourceConfig, key: str) -> None:
    """Check that there was a row at all to read."""
    if source.read:
        return
    place = f"{key}.path={config.path}" if config.kind is SourceKind.files else f"{key}.id={config.id}"
    raise UserError(f"{place}: is empty, there is no row in it; name one that holds conversations")


def _rows(count: int) -> str:
    """Return a number of rows in words."""
    return f"{count:,} row{'s' if count != 1 else ''}"


def _why(source: Standardised) -> str:
    """Say what was dropped and why."""
    reasons = {reason: sum(counts.values()) for reason, counts in source.dropped.items()}
    return "dropped: " + (", ".join(f"{reason} {count:,}" for reason, count in reasons.items()) or "none")


def _draw(keys: np.ndarray, count: int, seed: int, name: str) -> np.ndarray:
    """Draw row numbers of a base that is larger than asked for, independent of the order of its files."""
    order = np.argsort(keys, kind="stable")
    return order[stream(seed, name).permutation(len(order))[:count]]


def _keys(source: Standardised) -> np.ndarray:
    """Return the 16-byte keys as an array of hexadecimal strings, dtype S32."""
    keys = source.rows.data.column("key").combine_chunks()
    buffer = b"".join(keys.to_pylist())
    return np.frombuffer(buffer.hex().encode(), dtype="S32")


def _ids(origin: str, keys: np.ndarray) -> list[str]:
    """Return row ids; rows of the base that share a text are told apart by a number."""
    texts = keys.astype(str).tolist()
    if len(np.unique(keys)) == len(keys):
        return [f"{origin}:{key}" for key in texts]
    seen: Counter[str] = Counter()
    ids = []
    for key in texts:
        seen[key] += 1
        ids.append(f"{origin}:{key}" if seen[key] == 1 else f"{origin}:{key}-{seen[key]}")
    return ids


def _facts(source: Standardised) -> dict[str, Any]:
    """Return what standardising counted, for the manifest."""
    counts = {"read": source.read, "usable": len(source.rows), "dropped": source.dropped, "mended": source.mended}
    return {"fingerprint": source.fingerprint, **counts}


def _total(counts: dict[str, dict[str, int]]) -> int:
    """Return the sum over reasons and sources."""
    return sum(sum(by_source.values()) for by_source in counts.values())


def _sources(drawn: list[tuple[Standardised, np.ndarray]]) -> dict[str, int]:
    """Count the rows by source."""
    total: Counter[str] = Counter()
    for part, order in drawn:
        labels = pc.take(
            part.rows.data.column("source").combine_chunks(), pa.array(order)
        )  # one column, not whole rows
        for entry in pc.value_counts(labels).to_pylist():
            total[entry["values"]] += entry["counts"]
    return dict(total.most_common())
