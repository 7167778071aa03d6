"""The limitations that a reader of a report's numbers must know."""

from collections.abc import Sequence

from tometune.config.eval import HELD_OUT
from tometune.reporting.conclusions import Table, alpha_of, listed, tests_of, tuned_rows
from tometune.runs.inputs import ADDED

LONGER = 2.0  # a caution is given if one cell's answers are this many times as long as another's
WHOLE = 0.95  # passes over a mix that count as one
FEW_CLUSTERS = 20  # with fewer, an interval over clusters is noticeably too narrow
PENALTY = "ROUGE penalises answers much shorter or longer than the reference, regardless of content."


def cautions(table: Table) -> list[str]:
    """Return the limitations that a reader of the numbers must know."""
    found = []
    tuned = tuned_rows(table)
    if single := [row["cell"] for row in tuned if row["seeds"] == 1]:
        found.append(f"A single seed, so the deviation is unknown (–): {', '.join(single)}.")
    if table["missing"]:
        found.append(f"Missing runs: {len(table['missing'])}; the means are over the others.")
    tests, resamples = tests_of(table), table["interval"]["resamples"]
    if tests * 2 / (resamples + 1) >= alpha_of(table):  # the smallest p-value possible, after the correction
        found.append(
            f"eval.resamples={resamples} is too small for any of the {tests} tests to be significant; use 10,000."
        )
    found += _read_in_part(tuned)
    vary = table["interval"]["seeds_vary"]
    if vary and len(vary) < 4:
        found.append(f"The seeds vary only in: {listed(vary)}.")
    if any(not entry["paired"] for entry in table["comparisons"]):
        found.append("Arms with different seeds are compared as independent samples.")
    found += [_on_clusters(*entry) for entry in table.get("clusters", {}).items() if entry[1] < FEW_CLUSTERS]
    for (_, task, lengths), matched in zip(length_differences(table["rows"]), table["length_matched"], strict=True):
        means = listed([f"{value:.1f} for {cell}" for cell, value in lengths.items()])
        cut = listed([f"{scores['rougeL']:.3f} for {cell}" for cell, scores in matched["cells"].items()])
        found.append(
            f"Answer length on {task} in tokens: {means}. {PENALTY} "
            f"With each answer and its reference cut to the words of the shorter one, ROUGE-L is {cut}."
        )
    found += table["notes"]
    held_out = [f"{n:,} {task.replace('_', ' ')}" for task, n in table["tasks"].items() if task.startswith(HELD_OUT)]
    if held_out:
        means = " Means over tasks do not include them." if len(held_out) < len(table["tasks"]) else ""
        rows = "No run trains on held-out rows or on repeats of them, so a mix of the whole base has fewer rows"
        found.append(f"{rows}. Scored: {', '.join(held_out)}.{means}")
    return found


def _on_clusters(task: str, count: int) -> str:
    if count == 1:  # of a few scored examples; a task whose clusters do not differ at all is refused
        return (
            f"All scored examples of {task} are in one cluster, so intervals leave out how examples differ; score more."
        )
    return f"Only {count} clusters on {task}: intervals over so few are too narrow."


def _read_in_part(rows: Sequence[Table]) -> list[str]:
    """Return what is wrong with a comparison of rows added to a file, if runs do not read all of their mix."""
    part = {row["data"]: row["training"]["epochs"] or 1.0 for row in rows}
    if not any(ADDED in name for name in part) or min(part.values()) >= WHOLE:
        return []
    read = listed([f"{share:.0%} of {name}" for name, share in part.items()])
    fix = "set trainer.max_steps=null trainer.num_train_epochs=1"
    return [f"Runs read only a part of their mix ({read}), so added rows take the place of your own; {fix}."]


def length_differences(rows: Sequence[Table]) -> list[tuple[str, str, dict[str, float]]]:
    """Return model, task and tokens per answer of each cell where one cell's answers are `LONGER` than another's."""
    found = []
    tuned = tuned_rows({"rows": rows})
    for model in dict.fromkeys(row["model"] for row in tuned):
        own = [row for row in tuned if row["model"] == model]
        for task in own[0]["answer_tokens"]:
            known = {row["cell"]: row["answer_tokens"][task] for row in own if row["answer_tokens"][task] is not None}
            if known and max(known.values()) > LONGER * max(min(known.values()), 0.5):
                found.append((model, task, known))
    return found
