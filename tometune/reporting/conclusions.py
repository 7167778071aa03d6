"""The answer to the sweep's question in sentences, and what limits it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from tometune.reporting.published import published_comparisons

LABELS = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L"}
"""Metrics as the table calls them."""


def p_value(p: float) -> str:
    """Return a p-value as text."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def count(number: int | None) -> str:
    """Return a number of seeds as text."""
    return "more than 100,000" if number is None else f"{number:,}"


def between(entry: Mapping[str, Any]) -> str:
    """Return an interval as text."""
    return f"{signed(entry['ci_low'])} to {signed(entry['ci_high'])}"


def signed(value: float) -> str:
    """Return a difference with its sign."""
    return f"{value:+.3f}".replace("-", "−")


def listed(names: Sequence[str]) -> str:
    """Join names to a list in words."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


MUCH = 2.0
"""Times as long as another cell's answers: then it is told."""


def answer_tokens(records: Sequence[Mapping[str, Any]], stage: str, tasks: Sequence[str]) -> dict[str, float | None]:
    """Return the mean generated tokens of an answer by task, over runs; None where a record does not tell.

    Args:
        records: run.json of each run.
        stage: `base` or `tuned`.
        tasks: their names.
    """
    scored = [record["eval"][stage]["tasks"] for record in records if stage in record["eval"]]
    return {task: _mean([each.get(task, {}) for each in scored]) for task in tasks}


def _mean(scored: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the mean over runs of one task."""
    known = [task["tokens"] / task["examples"] for task in scored if task.get("tokens") is not None]
    return round(fmean(known), 2) if known and len(known) == len(scored) else None


def length_notes(table: Mapping[str, Any]) -> list[str]:
    """Say of which tasks the answers of a model's cells differ much in length.

    Args:
        table: the content of table.json.
    """
    tuned = [row for row in table["rows"] if row["stage"] == "tuned"]
    found = []
    for model in dict.fromkeys(row["model"] for row in tuned):
        cells = [row for row in tuned if row["model"] == model]
        for task in table["tasks"]:
            tokens = {row["cell"]: row["answer_tokens"][task] for row in cells}
            known = [value for value in tokens.values() if value is not None]
            if known and max(known) > MUCH * max(min(known), 0.5):
                each = listed([f"{value:.1f} after {cell}" for cell, value in tokens.items() if value is not None])
                found.append(
                    f"Length: tokens of an answer of {task}: {each}. "
                    "ROUGE falls with answers much shorter or longer than the references, whatever they say."
                )
    return found


LIMIT = "LIMIT: scored on only some examples (eval.limit); a try-out, no result"

Table = Mapping[str, Any]


@dataclass(frozen=True)
class Answer:
    """A question and what the runs say."""

    question: str
    verdict: str
    """A few words: yes, no, not shown."""

    sentences: list[str]


def answers(table: Table) -> list[Answer]:
    """Answer, for each model, whether its last cell is better than its first (of the same settings)."""
    asked = []
    for pair in headline(table):
        found = [entry for entry in table["comparisons"] if (entry["a"], entry["b"]) == pair]
        asked.append(_answer(pair, found, table))
    others = _others(table)
    if asked and others:
        asked[-1].sentences.append(f"Of the other pairs these differ: {'; '.join(others)}.")
    return asked


def _others(table: Table) -> list[str]:
    """Name the pairs beside the headlines whose tests survive the correction, with their verdicts."""
    asked = headline(table)
    pairs = dict.fromkeys((entry["a"], entry["b"]) for entry in table["comparisons"])
    told = []
    for pair in pairs:
        found = [entry for entry in table["comparisons"] if (entry["a"], entry["b"]) == pair]
        shown = [entry for entry in found if significant(entry, table)]
        if pair not in asked and shown:
            differences = listed([f"{LABELS[entry['metric']]} {signed(entry['delta'])}" for entry in shown])
            told.append(f"{pair[0]} against {pair[1]} ({differences})")
    return told


def significant(entry: Table, table: Table) -> bool:
    """Whether a comparison's test survives the correction."""
    return entry["p_holm"] is not None and entry["p_holm"] < 1 - table["interval"]["confidence"]


def headline(table: Table) -> list[tuple[str, str]]:
    """Return the pairs asked about: of each model, the last and the first cell that were compared."""
    chosen = []
    for model in dict.fromkeys(row["model"] for row in table["rows"]):
        labels = [row["cell"] for row in table["rows"] if row["model"] == model and row["stage"] == "tuned"]
        found = [(entry["a"], entry["b"]) for entry in table["comparisons"] if entry["a"] in labels]
        if found:
            chosen.append(max(found, key=lambda pair: labels.index(pair[0]) - labels.index(pair[1])))
    return chosen


def _answer(pair: tuple[str, str], found: Sequence[Table], table: Table) -> Answer:
    """Put the comparisons of one pair into words."""
    question = _question(pair, table)
    sentences = [f"{', '.join(_difference(entry, table) for entry in found)}."]
    if any(entry["interval_over"] == "examples" for entry in found):
        sentences.append(
            "One of the two has a single seed, so the deviation over seeds is unknown: the intervals are over "
            "examples alone, and no test can be made. Add seeds: seed=0,1,2."
        )
        return Answer(question, "It cannot be known from one seed.", sentences)
    alone = [LABELS[entry["metric"]] for entry in found if entry["p"] < 1 - table["interval"]["confidence"]]
    if alone and not any(significant(entry, table) for entry in found):
        tests = sum(entry["p"] is not None for entry in table["comparisons"])
        sentences.append(
            f"Taken alone, {listed(alone)} would pass as a difference; "
            f"among {tests} tests that is too likely by chance."
        )
    sentences.append(_seeds(found))
    floor = max(found, key=lambda entry: entry["examples_deviation"])
    smallest = 2.8 * floor["examples_deviation"]  # (z at 0.975) + (z at 0.8), times the standard error
    if smallest > floor["seeds_needed"]["difference"]:
        sentences.append(
            f"With these examples even any number of seeds shows only differences of {smallest:.3f} and more "
            f"({LABELS[floor['metric']]}): score more examples."
        )
    return Answer(question, _verdict(found, table), sentences)


def _question(pair: tuple[str, str], table: Table) -> str:
    """Ask about two cells; where there are several models, theirs is named once."""
    model = next(row["model"] for row in table["rows"] if row["cell"] == pair[0])
    a, b = (label.removeprefix(f"{model} ") for label in pair)
    return f"Is {a} better than {b}?" if a == pair[0] else f"{model}: is {a} better than {b}?"


def _verdict(found: Sequence[Table], table: Table) -> str:
    """Say yes or no by the tests that survive the correction."""
    shown = [entry for entry in found if significant(entry, table)]
    better = [LABELS[entry["metric"]] for entry in shown if entry["delta"] > 0]
    worse = [LABELS[entry["metric"]] for entry in shown if entry["delta"] < 0]
    if better and worse:
        return f"Better in {listed(better)}, worse in {listed(worse)}."
    if better:
        return "Yes." if len(better) == len(found) else f"Yes in {listed(better)}; not shown in the others."
    if worse:
        return (
            "No, it is worse." if len(worse) == len(found) else f"No: worse in {listed(worse)}, the others not shown."
        )
    return "Not shown: these runs cannot tell the two apart."


def _difference(entry: Table, table: Table) -> str:
    """Say one difference with its interval and its p-value."""
    level = f"{table['interval']['confidence']:.0%}"
    text = f"{LABELS[entry['metric']]} {signed(entry['delta'])} ({level} interval {between(entry)}"
    return text + (")" if entry["p_holm"] is None else f", {p_value(entry['p_holm'])} after Holm)")


def _seeds(found: Sequence[Table]) -> str:
    """Say how many seeds would show the difference that matters."""
    needed = [entry["seeds_needed"] for entry in found]
    told = ", ".join(
        f"{count(need['n'])} for {LABELS[entry['metric']]} ({count(need['low'])} to {count(need['high'])})"
        for entry, need in zip(found, needed, strict=True)
    )
    seeds = " and ".join(str(number) for number in dict.fromkeys(found[0]["seeds"]))
    return (
        f"Seeds an arm to see a difference of {needed[0]['difference']} with a chance of "
        f"{needed[0]['power']:.0%}: about {told}; the ranges are what {seeds} seeds leave open about the deviation."
    )


def published_answer(confidence: float) -> str:
    """Say what the published table's own figures allow one to say."""
    found = published_comparisons(confidence)
    told = ", ".join(
        f"{LABELS[entry['metric']]} {signed(entry['delta'])} ({between(entry)}, {p_value(entry['p'])})"
        for entry in found
    )
    least, most = (choose(int(entry["seeds_needed"]) for entry in found) for choose in (min, max))
    return (
        f"300k against 100k in the published table: {told}; Welch's intervals from its means and deviations, three "
        f"runs each, not corrected. With deviations of that size, a difference of 0.01 takes {least} to {most} runs "
        "an arm to see."
    )


def cautions(table: Table) -> list[str]:
    """Return what a reader must know beside the numbers."""
    told = []
    single = [row["cell"] for row in table["rows"] if row["stage"] == "tuned" and row["seeds"] == 1]
    if single:
        told.append(f"One seed only, so no deviation (–): {', '.join(single)}.")
    if table["missing"]:
        told.append(f"Missing cells: {len(table['missing'])}; the means are over the others.")
    tests = sum(entry["p"] is not None for entry in table["comparisons"])
    resamples = table["interval"]["resamples"]
    if tests * 2 / (resamples + 1) >= 1 - table["interval"]["confidence"]:  # the smallest p there can be, after Holm
        told.append(f"eval.resamples={resamples}: too few for any of {tests} tests to pass; take 10,000.")
    vary = table["interval"]["seeds_vary"]
    if vary and len(vary) < 4:
        told.append(f"Between seeds only this varies: {listed(vary)}.")
    if any(not entry["paired"] for entry in table["comparisons"]):
        told.append("Arms with different seeds are compared as independent samples.")
    return [*told, *length_notes(table), *table["notes"]]
