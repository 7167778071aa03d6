"""What a sweep varies and what it holds constant: training per cell."""

from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Any

from tometune.common.errors import some
from tometune.reporting.conclusions import SAME, Table, listed, tuned_rows
from tometune.reporting.grouping import Cell
from tometune.reporting.sweep import CONTENT

COUNTS = {
    "rows": "rows",
    "steps": "steps",
    "epochs": "epochs",
    "tokens": "tokens read",
    "trained_tokens": "trained tokens",
    "parameters": "adapter parameters",
}
"""Numbers of a cell's training, and their names in sentences."""

COMPARED = ("model.id", "model.revision", "model.quantization", "model.dtype", "data.base", "data.pool", "meaning")
COMPARED_GROUPS = ("trainer.", "lora", "data.filters", "data.near_dedup", "data.contamination")

LISTED = 6  # settings that a sentence names


def large(number: float) -> str:
    """Format a large number with three digits: `61.2 million`."""
    for size, word in ((1e9, "billion"), (1e6, "million")):
        if number >= size:
            return f"{number / size:.3g} {word}"
    return f"{number:,.0f}"


def capacity_line(rows: int, trained: int, parameters: int, adapter: bool, epochs: float = 1.0) -> str:
    """Return how many tokens are trained with how many parameters, in words; `adapter` says which ones."""
    kind, read = "adapter parameters" if adapter else "parameters", ""
    if abs(epochs - 1) > SAME - 1:
        read = f", read {epochs:.2f} times," if epochs > 1 else f", of which {epochs:.0%} are read,"
    return f"{rows:,} rows{read} train {large(trained)} tokens with {large(parameters)} {kind}"


def training_of(cell: Cell) -> dict[str, float | None]:
    """Return the means over a cell's runs of the numbers in `COUNTS`; None where a record has no number."""
    records = [run.record.get("train") or {} for run in cell.runs.values()]
    found: dict[str, float | None] = {"rows": cell.rows}
    for name in list(COUNTS)[1:]:
        key = "trainable_parameters" if name == "parameters" else name
        values = [record[key] for record in records if record.get(key) is not None]
        found[name] = round(fmean(values), 4) if values and len(values) == len(records) else None
    trained, parameters = found["trained_tokens"], found["parameters"]
    found["parameters_per_token"] = round(parameters / trained, 4) if trained and parameters is not None else None
    return found


def controls(cells: Sequence[Cell], design: str | None) -> dict[str, Any]:
    """Return the settings that differ between cells, and the numbers of `COUNTS` or their ranges.

    A sweep with a design is a control, so its `content` is added, by which other sweeps find it.
    """
    runs = [next(iter(cell.runs.values())).settings for cell in cells]
    keys = sorted({key for settings in runs for key in settings} - {*CONTENT, "data.rows", "data.base.rows"})
    drawing = [settings for settings in runs if "data.pool.kind" in settings]  # a mix without a pool has no settings
    found = {key: drawing if key.startswith("data.pool.") else runs for key in keys}
    differ = [key for key in keys if len({str(settings.get(key)) for settings in found[key]}) > 1]
    trained, constant, varied = [training_of(cell) for cell in cells], {}, {}
    for name in COUNTS:
        known = [value for numbers in trained if (value := numbers[name]) is not None]
        if known and len(known) == len(trained):
            low, high = min(known), max(known)
            if high <= SAME * low:
                constant[name] = high
            else:
                varied[name] = [low, high]
    controlled = {"design": design, "settings": differ, "constant": constant, "varied": varied}
    return controlled if design is None else {**controlled, "content": content_of(cells)}


def content_of(cells: Sequence[Cell]) -> dict[str, list[str]]:
    """Return what two sweeps must have in common before their differences are compared: values by setting."""
    runs = [run for cell in cells for run in cell.runs.values()]
    keys = {key for run in runs for key in run.settings if key in COMPARED or key.startswith(COMPARED_GROUPS)}
    found = {key: sorted({str(run.settings[key]) for run in runs if run.settings.get(key) is not None}) for key in keys}
    return {key: values for key, values in sorted(found.items()) if values}


def control_sentences(table: Table) -> list[str]:
    """Return what the sweep varies and holds constant: as designed, and as its runs recorded it."""
    found = table["controls"]
    sentences = [found["design"]] if found["design"] else []
    if len(tuned_rows(table)) == 1:
        return sentences

    def number(name: str, value: float) -> str:
        return f"{value:.2f}".rstrip("0").rstrip(".") if name == "epochs" else large(value)

    if found["settings"]:
        sentences.append(f"Settings that differ between cells: {some(found['settings'], LISTED)}.")
    if found["constant"]:
        texts = [f"{COUNTS[name]} ({number(name, value)})" for name, value in found["constant"].items()]
        sentences.append(f"The same in all cells, within {SAME - 1:.0%}: {listed(texts)}.")
    if found["varied"]:
        ends = {name: " to ".join(number(name, end) for end in range_) for name, range_ in found["varied"].items()}
        sentences.append(f"Different: {listed([f'{COUNTS[name]} ({text})' for name, text in ends.items()])}.")
    return sentences


def unchanged_arms(cells: Sequence[Cell]) -> Iterator[str]:
    """Yield a note for each arm that has the same rows as the mix of all sources: its source gave none."""
    for cell in cells:
        digests = {seed: run.record["data"].get("digest") for seed, run in cell.runs.items()}
        for other in cells:
            same = [run.record["data"].get("digest") == digests.get(seed) for seed, run in other.runs.items()]
            if cell.arm and not other.arm and None not in digests.values() and same and all(same):
                yield f"{cell.label} has the same rows as {other.label}, so it shows nothing."
