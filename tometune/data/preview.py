"""The numbers of a mix for its data card, and a row with its trained tokens."""

import json
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.text import Text

from tometune.common.errors import some
from tometune.common.seeding import stream
from tometune.data.conversations import full_messages
from tometune.data.encoder import IGNORE
from tometune.data.features import feature
from tometune.data.filters import NEAR
from tometune.data.mix import CONTAMINATED, Mix
from tometune.data.tokens import Tokens

# Reasons why rows are dropped, in words; any other reason is shown by its key.
REASONS = {
    "no_assistant_turn": "no assistant turn",
    "in_base": "text is in the base",
    "repeats": "text is in an earlier row of the pool",
    NEAR: "near-duplicate of another row",
    CONTAMINATED: "overlaps with an evaluation example",
    "held_out": "held out for scoring, or a repeat of such a row",
}
TRAINED, OTHER = "bold green", "dim"
MARKS = ("⟦", "⟧")  # around trained tokens if there is no colour, as in a file
LONGEST_NAME = 40
MOST_NAMES = 30  # of columns that were not read
SAMPLES = 10  # rows that a card shows as chats


def drops(facts: Mapping[str, Any]) -> dict[str, tuple[int, Mapping[str, int]]]:
    """Return (rows, rows by source) for each reason to drop rows, in the order in which rows are checked."""
    near = {NEAR: facts.get(NEAR, {})}
    standardised = facts["malformed"] | facts["dropped"]
    by_source = {**standardised, **facts.get("excluded_sources", {}), **facts.get("filtered", {}), **near}
    found = {reason: (sum(sources.values()), sources) for reason, sources in by_source.items()}
    by_task = facts.get("contaminated", {}).items()
    overlaps = {f"{task}: {name}": count for task, sources in by_task for name, count in sources.items()}
    found[CONTAMINATED] = facts.get("contaminated_rows", 0), overlaps
    found["held_out"] = facts.get("held_out", 0), {}
    return {reason: entry for reason, entry in found.items() if entry[0]}


def steps(facts: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Return the steps from the rows read from a base or pool to the rows taken; rows dropped are negative.

    A row whose text is in the base and in an earlier row of the pool is counted under the first of these reasons.
    """
    lost = {reason: rows for reason, (rows, _) in drops(facts).items()}
    later = {reason: rows for reason, rows in lost.items() if reason not in facts["malformed"] | facts["dropped"]}
    twice = sum(later.values()) - (facts["usable"] - facts["eligible"]) if "eligible" in facts else 0
    if "repeats" in later:
        later["repeats"] -= twice
    dropped = [(reason, -count) for reason, count in (lost | later).items() if count]
    eligible = [("eligible", facts["eligible"])] if "eligible" in facts else []
    return [("read", facts["read"]), *dropped, *eligible, ("taken", facts["rows"])]


def row(tokens: Tokens, tokenizer: Any, number: int, marks: tuple[str, str] = ("", "")) -> Text:
    """Return one row of `tokens.dataset` as the model sees it, with the trained tokens in colour and between marks."""
    entry = tokens.dataset[number]
    labelled = zip(entry["input_ids"], entry["labels"], strict=True)
    shown = Text()
    for trained, pairs in groupby(labelled, lambda pair: pair[1] != IGNORE):
        text = tokenizer.decode([token for token, _ in pairs], skip_special_tokens=False)
        shown.append(f"{marks[0]}{text}{marks[1]}" if trained else text, style=TRAINED if trained else OTHER)
    return shown


def profile(mix: Mix, tokens: Tokens, cache: Path) -> pd.DataFrame:
    """Return values of the rows of a mix, in its order.

    Columns are `source` (categories with the largest first), `pool` (whether the row is from there), `key` (rows that
    share one have the same text), `characters`, `turns` (without the system's), `tokens` (after truncation, 0 for rows
    that training skips) and `score` (NaN for rows without one).
    """
    parts = []
    for origin, part in mix.parts.items():
        source, rows = part.source, part.chosen
        columns = {"pool": origin == "pool", "key": source.keys[rows]}
        columns |= {name: feature(source, name, cache)[rows] for name in ("characters", "spoken_turns")}
        parts.append(pd.DataFrame(columns, index=np.array(source.names, dtype=object)[source.labels[rows]]))
    values = pd.concat(parts).rename(columns={"spoken_turns": "turns"}).reset_index(names="source")
    scores = np.nan if mix.scores is None else mix.scores
    return values.assign(
        source=pd.Categorical(values["source"], list(mix.sources)), tokens=tokens.lengths, score=scores
    )


def unread_columns(mix: Mix) -> list[tuple[str, str, str]]:
    """Return (origin, source, `images 6, label 3`): columns and keys of turns that were not read, and their rows."""
    found: dict[tuple[str, str], dict[str, int]] = {}
    for origin, facts in mix.facts.items():
        for name, by_source in facts["unread"].items():
            for source, rows in by_source.items():
                found.setdefault((origin, source), {})[name] = rows
    listed = []
    for (origin, source), names in sorted(found.items(), key=lambda entry: -sum(entry[1].values())):
        largest = sorted(names.items(), key=lambda entry: (-entry[1], entry[0]))
        shown = (f"{' '.join(name[:LONGEST_NAME].split())} {rows:,}" for name, rows in largest)
        listed.append((origin, source, some(shown, MOST_NAMES)))
    return listed


def repeats(values: pd.DataFrame) -> dict[str, int]:
    """Count by source the rows whose text an earlier row of the mix has; `values` are those of `profile`."""
    counts = values[values.duplicated("key")]["source"].value_counts(sort=False)
    return {str(name): count for name, count in counts.to_dict().items() if count}


def samples(mix: Mix) -> list[dict[str, Any]]:
    """Return a few random rows, drawn with the mix's seed: `number, row_id, source, messages`.

    What a turn holds beyond its text, such as tool calls, is appended to the text as JSON.
    """
    drawn = stream(mix.seed, "card").permutation(len(mix.row_ids))[:SAMPLES]
    shown = []
    for number in sorted(drawn.tolist()):
        row = mix.dataset[number]
        messages = []
        for turn in full_messages(row["messages"], row["extras"])[0]:
            more = {name: value for name, value in turn.items() if name not in ("role", "content")}
            text = "\n".join([turn["content"], json.dumps(more, ensure_ascii=False)] if more else [turn["content"]])
            messages.append({"role": turn["role"], "content": text})
        shown.append({"number": number, "row_id": mix.row_ids[number], "source": row["source"], "messages": messages})
    return shown


def described(values: "pd.Series[float]") -> dict[str, float]:
    """Return mean, median, 5th and 95th percentile, and sum; zeros if there are no values."""
    if not len(values):
        return dict.fromkeys(("mean", "median", "p5", "p95", "sum"), 0.0)
    p5, median, p95 = np.percentile(values, [5, 50, 95]).tolist()
    return {"mean": float(values.mean()), "median": median, "p5": p5, "p95": p95, "sum": float(values.sum())}
