"""What explains a difference between mixes: what finished controls next to a sweep say, by their intervals alone.

A control counts if it has the same tasks, data and settings as the two cells, but for those that it varies itself. One
with another setting is named, and not used. Held-out rows may differ: no mean over tasks contains them.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from tometune.common.errors import some
from tometune.evaluation.metrics import averaged, label
from tometune.reporting import conclusions
from tometune.reporting.conclusions import SAME, Table, brief, listed, significant, tuned_rows
from tometune.reporting.controls import content_of
from tometune.reporting.grouping import Cell
from tometune.reporting.sweep import Sweep, finished_tables

CONTROLS = {"the number of steps": "same_steps", "the capacity of the adapter": "capacity"}
SOURCES = "leave_one_source_out"
OWN_SETTINGS = {
    "same_steps": {"trainer.max_tokens", "trainer.max_steps", "trainer.num_train_epochs"},
    "capacity": {"lora.r", "lora.lora_alpha"},
    SOURCES: set[str](),
}
"""By control, the settings that it may set as it likes."""

SAME_DATA = {"model.id", "data.base", "data.pool"}  # a sweep that differs in these is no control of this one at all
SENTENCES = {
    "explained": "{} explains the difference",
    "part": "{} explains at least a part of the difference",
    "not explained": "{} alone does not explain the difference",
    "undecided": "whether {} explains the difference is undecided",
}


def explanations(sweep: Sweep, cells: Sequence[Cell], table: Table) -> list[dict[str, Any]]:
    """Return question, verdict, sentences and `causes` for each significant difference of `headline` between mixes.

    There are none for a control itself, and for runs that did not record the content of base and pool.
    """
    found = []
    rows = {row["cell"]: row for row in tuned_rows(table)}
    for pair in chain(*conclusions.headline(table)) if sweep.design is None else ():
        passed = [entry for entry in conclusions.comparisons_of(pair, table) if significant(entry, table)]
        content = content_of([cell for cell in cells if cell.label in pair])
        a, b = (rows[cell] for cell in pair)
        if passed and _mix(a) != _mix(b) and content.keys() >= {"data.base", "data.pool"}:
            own = next(entry for entry in passed if entry["metric"] == conclusions.main_metric(passed))
            controls = {}
            for name, other in finished_tables(sweep.folder.parent).items():
                theirs = other.get("controls", {}).get("content", {})
                differ = [key for key in sorted({*content, *theirs}) if content.get(key) != theirs.get(key)]
                compared = [_tasks(other), other["limited"]] == [_tasks(table), table["limited"]]
                if theirs and compared and SAME_DATA.isdisjoint(differ):
                    controls[name] = {**other, "differ": differ}
            found.append(_explanation(own, a, b, controls, table["question"]["margin"]))
    return found


def _tasks(table: Table) -> dict[str, int]:
    """Return the examples by task that are in its means over tasks."""
    return {task: table["tasks"][task] for task in averaged(table["tasks"])}


def _mix(row: Table) -> tuple[str, int]:
    """Return the name of a mix without that of its held-out rows, and its rows with them."""
    name, held, number = row["data"].partition("-held")
    return (name, row["rows"] + int(number)) if held and number.isdigit() else (row["data"], row["rows"])


def _explanation(own: Table, a: Table, b: Table, controls: Mapping[str, Table], margin: float | None) -> dict[str, Any]:
    """Return the entry on the difference `own` between the rows `a` and `b`."""
    causes = dict.fromkeys([*CONTROLS.values(), SOURCES], "not run")
    sentences, explain, unused, metric = [], [], [], own["metric"]
    findings = sorted(_findings(own, a, b, controls, margin), key=lambda finding: list(causes).index(finding[1]))
    for name, preset, shown, verdict, cause in findings:
        if differ := [key for key in controls[name]["differ"] if key not in OWN_SETTINGS[preset]]:
            unused.append(f"{name} ({some(differ, 4)})")
            continue
        causes[preset] = verdict
        sentences.append(f"{shown}: {SENTENCES[verdict].format(cause)}.")
        explain += {"explained": [cause], "part": [f"{cause} (at least in part)"]}.get(verdict, [])
    without = [name for name, control in controls.items() if metric not in control["metrics"]]
    unused += [f"{name} ({label(metric)} was not scored)" for name in without]
    if unused:
        sentences.append(f"Not used, because these settings are not those of this sweep: {'; '.join(unused)}.")
    if absent := [f"+sweep={preset}" for preset, verdict in causes.items() if verdict == "not run"]:
        sentences.append(
            f"Not run yet: {listed(absent)}. Run tometune train with each of them and with the model, data "
            "and eval of this sweep, then repeat this report."
        )
    none = f"Not known: no {'such ' if unused else ''}control was run."
    answer = "Undecided." if set(causes.values()) != {"not run"} else none
    if explain:
        answer = f"{listed(explain)[0].upper()}{listed(explain)[1:]}."
    elif set(causes.values()) == {"not explained"}:
        answer = "None of steps, capacity and single sources alone."
    question = f"What explains {own['a']} − {own['b']} in {label(own['metric'])}, {brief(own)}?"
    return {"question": question, "verdict": answer, "sentences": sentences, "causes": causes}


def _findings(
    own: Table, a: Table, b: Table, controls: Mapping[str, Table], margin: float | None
) -> Iterator[tuple[str, str, str, str, str]]:
    """Yield what each control shows: its sweep, its preset, the beginning of a sentence, the verdict and the cause."""
    metric = own["metric"]
    for name, control in controls.items():
        for cause, (setting, entry) in _same_pair(metric, a, b, control).items():
            shown = f"With {setting} (sweep {name}) the difference is {brief(entry)}"
            yield name, CONTROLS[cause], shown, _verdict(own, entry, margin), cause
        by_source = conclusions.source_effects(control) if metric in control["metrics"] else {}
        effects = {of: entries[metric] for of, entries in by_source.items()}
        if effects and all(entry["kind"] == "without" for entry in effects.values()):
            verdict, decisive = _verdict_on_sources(own, effects, control)
            texts = listed([f"{brief(effects[of])} for {of}" for of in decisive])
            shown = f"Having a source in the mix (sweep {name}) changes {label(metric)} by {texts}"
            cause = f"the data of {listed(decisive)}" if verdict == "part" else "a single source"
            yield name, SOURCES, shown, verdict, cause


def _same_pair(metric: str, a: Table, b: Table, control: Table) -> dict[str, tuple[str, Table]]:
    """Return by cause what a control sets, and its comparison of the same mixes, at the highest rank.

    Mixes are the same if they have one name, and the same rows but for held-out ones and their repeats.
    """
    cells, found = {row["cell"]: row for row in tuned_rows(control)}, {}
    for entry in (entry for entry in control["comparisons"] if entry["metric"] == metric):
        both = cells[entry["a"]], cells[entry["b"]]
        mixes = [(_mix(own), _mix(wanted)) for own, wanted in zip(both, (a, b), strict=True)]
        if all(one[0] == two[0] and max(one[1], two[1]) <= SAME * min(one[1], two[1]) for one, two in mixes):
            found[both[0]["settings"].get("lora.r", 0)] = entry
    steps, capacity = CONTROLS
    if any(found):
        return {capacity: (f"lora.r={max(found)}", found[max(found)])}
    constant = found and "tokens" in control["controls"]["constant"]
    return {steps: ("the same number of tokens", found[0])} if constant else {}


def _verdict(own: Table, entry: Table, margin: float | None) -> str:
    """Return whether what a control holds constant, or enlarges, explains `own`; `entry` is what remains of it.

    The remaining difference is smaller if the two intervals do not overlap, which is valid however the two sweeps are
    correlated. It is explained as a whole only if the remaining one is also within the margin around zero.
    """
    (least, _), (low, high) = _towards(own, own), _towards(own, entry)
    if entry["p"] is None:  # a single seed
        return "undecided"
    if high < least:
        return "explained" if margin is not None and -margin < low and high < margin else "part"
    return "not explained" if low > 0 else "undecided"


def _verdict_on_sources(own: Table, effects: Mapping[str, Table], control: Table) -> tuple[str, list[str]]:
    """Return the verdict, and the sources on which it rests.

    A source explains a part if its effect is significant and has the direction of the difference. No single one
    explains it if all effects are smaller.
    """
    part = [name for name, entry in effects.items() if significant(entry, control) and _towards(own, entry)[0] > 0]
    largest = max(effects, key=lambda name: _towards(own, effects[name]))
    tested = all(entry["p"] is not None for entry in effects.values())
    smaller = max(_towards(own, entry)[1] for entry in effects.values()) < _towards(own, own)[0]
    return "part" if part else "not explained" if tested and smaller else "undecided", part or [largest]


def _towards(own: Table, entry: Table) -> tuple[float, float]:
    """Return the ends of an interval, positive in the direction of the difference `own`."""
    ends = [end if own["delta"] > 0 else -end for end in (entry["ci_low"], entry["ci_high"])]
    return min(ends), max(ends)
