"""The answer to a sweep's question in sentences."""

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from statistics import NormalDist
from typing import Any, NamedTuple

from tometune.evaluation.metrics import better, label
from tometune.runs.inputs import ADDED

LIMIT = "LIMIT: only some examples were scored (eval.limit); this is a trial, not a result"
NOTHING_TO_COMPARE = "There is nothing to compare: no two cells of one model differ in exactly one setting."
SINGLE_SEED = "A single seed cannot tell."
EXPLORATORY = "Not asked: these comparisons are exploratory."
ONLY = "only "
NAMED_SOURCES = 3  # an arm of more is "12 others"
SAME = 1.02  # numbers that differ by at most this factor are the same: packs are not filled to the last token

Table = Mapping[str, Any]

EXPLAINS = ("NLL is in", "The ranges reflect", "A difference that is significant")
"""Beginnings of the sentences that explain how to read a number, which are said once for all answers."""


class Answer(NamedTuple):
    """A question about two cells and its answer; the verdict is a few words: yes, no, not significant."""

    question: str
    verdict: str
    sentences: list[str]


def answers(table: Table) -> list[Answer]:
    """Answer which sources matter, if any are varied; each question of `headline`; and why.

    The last answer before the reasons also lists the other significant differences.
    """
    groups, sources = headline(table), source_effects(table)
    found: list[Answer] = []
    answered: list[Table] = []
    for kind in dict.fromkeys(_kind(entries) for entries in sources.values()):
        own = {name: entries for name, entries in sources.items() if _kind(entries) == kind}
        metric = main_metric(list(next(iter(own.values())).values()))
        by_source = {name.removeprefix(ONLY): entries[metric] for name, entries in own.items()}
        answered += by_source.values()
        found.append(_sources_answer(by_source, table))
    found += _amounts_answer([pair for pairs in groups for pair in pairs], table)
    for pairs in groups:
        entries = [entry for pair in pairs for entry in comparisons_of(pair, table)]
        if len(pairs) > 1:
            entries = [entry for entry in entries if entry["metric"] == main_metric(entries)]
        found.append(_answer(pairs[0], table) if len(pairs) == 1 else _answer_by_value(entries, table))
        answered += entries
    known = {(entry["a"], entry["b"], entry["metric"]) for entry in answered}
    others: dict[str, list[str]] = {}
    for entry in table["comparisons"]:
        if significant(entry, table) and (entry["a"], entry["b"], entry["metric"]) not in known:
            difference = f"{label(entry['metric'])} {signed(entry['delta'])}"
            others.setdefault(f"{entry['a']} vs. {entry['b']}", []).append(difference)
    if found and others:
        texts = [f"{cells} ({listed(differences)})" for cells, differences in others.items()]
        found[-1].sentences.append(f"Other significant differences: {'; '.join(texts)}.")
    said: set[str] = set()
    for answer in found:
        answer.sentences[:] = [each for each in answer.sentences if each not in said]
        said.update(each for each in answer.sentences if each.startswith(EXPLAINS))
    explained = [Answer(*(entry[name] for name in Answer._fields)) for entry in table.get("explanations", [])]
    return found + explained


def headline(table: Table) -> list[list[tuple[str, str]]]:
    """Return the pairs that the question names; if it names none, per model the compared cells furthest apart.

    Pairs of the same two mixes at several values of a setting are one question. Arms over sources are not among those
    that are furthest apart; `answers` has one for all of them.
    """
    rows = {row["cell"]: row for row in tuned_rows(table)}
    order = list(rows)
    arms = {(each["a"], each["b"]) for effect in source_effects(table).values() for each in effect.values()}
    named = any(">" in text for text in table["question"]["primary"])
    groups: dict[Any, list[tuple[str, str]]] = {}
    for entry in table["comparisons"]:
        pair = entry["a"], entry["b"]
        if entry["primary"] if named else pair not in arms:
            mixes = [data_label(rows[cell], "data.") for cell in pair]
            apart = other_settings(rows[pair[0]]) == other_settings(rows[pair[1]])
            members = groups.setdefault((rows[pair[0]]["model"], *(mixes if apart else pair)), [])
            members += [] if pair in members else [pair]
    if named:
        return list(groups.values())
    chosen = []
    for model in models(table):
        own = [pairs for (name, *_), pairs in groups.items() if name == model]
        crossed = [pairs for pairs in own if len(pairs) > 1]
        if own:
            chosen.append(max(crossed or own, key=lambda pairs: order.index(pairs[0][0]) - order.index(pairs[0][1])))
    return chosen


def source_effects(table: Table) -> dict[str, dict[str, Table]]:
    """Return the effect of having each source, or only it, in the mix: by source, then by metric.

    Each is a comparison with the mix of all sources, with the sign turned where the arm leaves the source out. The
    name of a source has the model and other settings if they differ between arms, and a prefix if a table has both
    kinds of arms.
    """
    rows = {row["cell"]: row for row in tuned_rows(table)}
    pairs = [(entry, rows[entry["a"]], rows[entry["b"]]) for entry in table["comparisons"]]
    pairs = [(entry, a, b) for entry, a, b in pairs if bool(a["arm"]) != bool(b["arm"]) and a["rows"] == b["rows"]]
    kinds = {kind for _, a, b in pairs for kind in a["arm"] or b["arm"]}
    settings = [other_settings(a) for _, a, _ in pairs]
    varied = [key for key in dict.fromkeys(chain(*settings)) if len({str(own.get(key)) for own in settings}) > 1]
    found: dict[str, dict[str, Table]] = {}
    for entry, a, b in pairs:
        ((kind, sources),) = (a["arm"] or b["arm"]).items()
        sign = 1 if bool(a["arm"]) == (kind == "only") else -1
        low, high = sorted(sign * end + 0.0 for end in (entry["ci_low"], entry["ci_high"]))
        name = " + ".join(sources) if len(sources) <= NAMED_SOURCES else f"{len(sources)} others"
        name = f"{a['model']} {name}" if len(models(table)) > 1 else name
        name = " ".join([name, *(f"{key}={other_settings(a).get(key)}" for key in varied)])
        name = f"{ONLY}{name}" if kind == "only" and len(kinds) > 1 else name
        turned = {"delta": sign * entry["delta"] + 0.0, "ci_low": low, "ci_high": high, "kind": kind}
        found.setdefault(name, {})[entry["metric"]] = {**entry, **turned}
    return found


def _kind(entries: Mapping[str, Table]) -> str:
    return str(next(iter(entries.values()))["kind"])


def main_metric(entries: Sequence[Table]) -> str:
    """Return the metric that one sentence is about: of the primary ones ROUGE-L if it is there, else the first."""
    metrics = [str(entry["metric"]) for entry in [each for each in entries if each["primary"]] or entries]
    return "rougeL" if "rougeL" in metrics else metrics[0]


def _sources_answer(found: Mapping[str, Table], table: Table) -> Answer:
    """Return which sources have a significant effect, and all effects; `found` has those on one metric."""
    first = next(iter(found.values()))
    question, words, having = "Which sources matter?", ("Helps: ", "Harms: "), "this source in the mix"
    if first["kind"] == "only":
        question = "Is a single source better than all of them together?"
        words, having = ("Better: ", "Worse: "), "only this source instead of all"
    largest = dict(sorted(found.items(), key=lambda effect: -effect[1]["delta"]))
    return _answer_by_name(question, f"Effect on {label(first['metric'])} of having {having}", largest, table, words)


def _amounts_answer(pairs: Sequence[tuple[str, str]], table: Table) -> list[Answer]:
    """Return whether any amount of rows, added to the same mix, is better than the mix alone; empty if none is asked.

    The cells are named `MIX` and `MIX_plus_AMOUNT`, see `runs.inputs.file_mix`.
    """
    primary = [entry for entry in table["comparisons"] if entry["primary"]]
    asked = [entry for entry in primary if entry["a"].startswith(f"{entry['b']}{ADDED}")]
    if not asked or not {(entry["a"], entry["b"]) for entry in asked}.issuperset(pairs):
        return []
    return [_amounts_of(own, asked, table) for own in dict.fromkeys(entry["b"] for entry in asked)]


def _amounts_of(own: str, primary: Sequence[Table], table: Table) -> Answer:
    """Return whether any amount of rows, added to the mix of the cell `own`, is better than the mix alone."""
    asked = [entry for entry in primary if entry["b"] == own]
    found = {f"{entry['a'].partition(ADDED)[2]} rows ({label(entry['metric'])})": entry for entry in asked}
    words = "Yes: ", "It harms: "
    answer = _answer_by_name(f"Does adding rows to {own} help?", f"Difference from {own} alone", found, table, words)
    training = {row["cell"]: row["training"] for row in tuned_rows(table)}
    longest = max((training[entry["a"]] for entry in asked), key=lambda numbers: numbers["steps"] or 0)
    if longest["tokens"] and (longest["steps"] or 0) > SAME * (training[own]["steps"] or math.inf):
        answer.sentences.append(
            f"Added rows also mean more steps here: {training[own]['steps']:,.0f} for {own}, up to "
            f"{longest['steps']:,.0f} with added rows, which may be the reason for a difference. As many for all: "
            f"trainer.max_steps=null trainer.max_tokens={math.ceil(longest['tokens'])}."
        )
    return answer


def _answer_by_value(entries: Sequence[Table], table: Table) -> Answer:
    """Answer on one metric whether a mix is better than another at each value of a setting."""
    rows = {row["cell"]: row for row in tuned_rows(table)}
    settings = [other_settings(rows[entry["a"]]) for entry in entries]
    keys = [key for key in settings[0] if len({str(values.get(key)) for values in settings}) > 1]
    found = {" ".join(str(own.get(key)) for key in keys): each for own, each in zip(settings, entries, strict=True)}
    key, (a, b) = " and ".join(keys), (data_label(rows[entries[0][name]], "data.") for name in "ab")
    question = f"{rows[entries[0]['a']]['model']}: is" if len(models(table)) > 1 else "Is"
    question += f" {a} better than {b} at each {key}?"
    numbers = f"{label(entries[0]['metric'])} of {a} − {b} by {key}"
    answer = _answer_by_name(question, numbers, found, table, (f"Better at {key}=", f"Worse at {key}="))
    answer.sentences.append(f"{EXPLAINS[2]} at one value only may be the same at all of them; compare the intervals.")
    return answer


def _answer_by_name(
    question: str, numbers: str, found: Mapping[str, Table], table: Table, words: tuple[str, str]
) -> Answer:
    """Answer with the names of significant comparisons; `words` precede the better and the worse ones.

    `numbers` begins the sentence with all differences.
    """
    passed = {n: better(entry["metric"], entry["delta"]) for n, entry in found.items() if significant(entry, table)}
    groups = [[name for name in passed if passed[name] is helps] for helps in (True, False)]
    verdict = " ".join(f"{word}{listed(names)}." for word, names in zip(words, groups, strict=True) if names)
    single = [name for name, entry in found.items() if entry["p"] is None]
    if not passed:
        verdict = "Undecided: no significant difference."
    elif len(passed) + len(single) < len(found):
        verdict += " No significant difference otherwise."
    tests = {name: entry.get("equivalence") for name, entry in found.items() if name not in passed}
    if same := [name for name, each in tests.items() if each and significant(each, table, "p_same_holm")]:
        within = f"The same within {table['question']['margin']:g}: {listed(same)}."
        verdict = within if len(same) == len(found) else f"{verdict} {within}"
    if single:
        verdict += f" Only one seed: {listed(single)}."
    if len(single) == len(found):
        verdict = SINGLE_SEED
    elif not next(iter(found.values()))["primary"]:
        verdict = EXPLORATORY
    tested = any(entry["p_holm"] is not None for entry in found.values())
    texts = []
    for name, entry in found.items():
        test = ", a single seed" if entry["p"] is None else ""
        test = test if entry["p_holm"] is None else f", {p_value(entry['p_holm'])}"
        texts.append(f"{name} {signed(entry['delta'])} ({between(entry)}{test})")
    level = f"{table['interval']['confidence']:.0%} intervals{' and Holm-corrected p-values' if tested else ''}"
    return Answer(question, verdict, [f"{numbers}, with {level}: {', '.join(texts)}."])


def _answer(pair: tuple[str, str], table: Table) -> Answer:
    """Answer whether one cell is better than another, on all metrics."""
    found = sorted(comparisons_of(pair, table), key=lambda entry: not entry["primary"])
    model = next(row["model"] for row in table["rows"] if row["cell"] == pair[0])
    a, b = (cell.removeprefix(f"{model} ") for cell in pair)
    question = f"Is {a} better than {b}?" if a == pair[0] else f"{model}: is {a} better than {b}?"
    level = f"{table['interval']['confidence']:.0%} interval"
    differences = []
    for entry in found:
        corrected = "" if entry["p_holm"] is None else f", Holm-corrected {p_value(entry['p_holm'])}"
        test = corrected + ("" if entry["primary"] else ", exploratory")
        differences.append(f"{label(entry['metric'])} {signed(entry['delta'])} ({level} {between(entry)}{test})")
    sentences = [f"{', '.join(differences)}."]
    if any(entry["metric"] == "nll" for entry in found):
        sentences.append(f"{EXPLAINS[0]} bits per byte of the references; lower is better.")
    if any(entry["interval_over"] == "examples" for entry in found):
        sentences.append(
            "At least one of the two cells has a single seed, so the deviation over seeds is unknown: the intervals "
            "cover examples only, and no test is possible. Add seeds, e.g. seed=0,1,2."
        )
        return Answer(question, SINGLE_SEED, sentences)
    primary = [entry for entry in found if entry["primary"]]
    if not primary:
        return Answer(question, EXPLORATORY, sentences)
    return Answer(question, _verdict(primary, table), [*sentences, *_sentences_on_tests(primary, table)])


def _sentences_on_tests(found: Sequence[Table], table: Table) -> list[str]:
    """Return what the correction changed, the tests of equivalence, and what seeds and examples would detect."""
    sentences = []
    chance = 1 - (1 - alpha_of(table)) ** tests_of(table)
    uncorrected = [label(entry["metric"]) for entry in found if entry["p"] < alpha_of(table)]
    if uncorrected and not any(significant(entry, table) for entry in found):
        sentences.append(
            f"Before the correction for {tests_of(table)} tests, {listed(uncorrected)} would be significant; without "
            f"any difference, at least one of so many independent tests is so in {chance:.0%} of cases."
        )
    if "equivalence" in found[0]:
        texts = []
        for entry in found:
            tests, conclusion = entry["equivalence"], "neither is shown"
            if significant(tests, table, "p_same_holm"):
                conclusion = f"the same within {tests['margin']:g}, Holm-corrected {p_value(tests['p_same_holm'])}"
            elif significant(tests, table, "p_no_worse_holm"):
                conclusion = f"no worse by {tests['margin']:g} or more, Holm-corrected "
                conclusion += p_value(tests["p_no_worse_holm"])
            texts.append(f"{label(entry['metric'])} {between(tests)} ({conclusion})")
        level = f"{1 - 2 * alpha_of(table):.0%}"
        sentences.append(f"Equivalence by two one-sided tests, with {level} intervals: {', '.join(texts)}.")
    return [*sentences, *_sentences_on_seeds(found, table)]


def _sentences_on_seeds(found: Sequence[Table], table: Table) -> list[str]:
    """Return how many seeds detect a small difference; and if no number does, the smallest that many seeds detect."""
    need = found[0]["seeds_needed"]
    z = NormalDist().inv_cdf(1 - alpha_of(table) / 2) + NormalDist().inv_cdf(need["power"])
    numbers, beyond, smallest = [], [], []
    for entry in found:
        counts, floor = [entry["seeds_needed"][name] for name in ("n", "low", "high")], z * entry["examples_deviation"]
        if counts[0] is None and floor > need["difference"]:
            beyond.append(label(entry["metric"]))
            smallest.append(f"{floor:.3g} ({label(entry['metric'])})")
            continue
        number, low, high = ("more than 100,000" if count is None else f"{count:,}" for count in counts)
        about, ends = ("", "") if low == number == high else ("about ", f" ({low} to {high})")
        numbers.append(f"{about}{number} for {label(entry['metric'])}{ends}")
    enough = [*numbers, *([f"no number is enough for {listed(beyond)}"] if beyond else [])]
    detected = f"detect a difference of {need['difference']} with {need['power']:.0%} power"
    sentences = [f"Seeds per arm needed to {detected}: {', '.join(enough)}."]
    if any(text.endswith(")") for text in numbers):
        seeds = listed([str(number) for number in dict.fromkeys(found[0]["seeds"])])
        sentences.append(f"{EXPLAINS[1]} how uncertain a standard deviation from {seeds} seeds is.")
    if beyond:
        differences = f"a difference of {listed(smallest)}"
        sentences.append(f"With these examples, many seeds detect {differences} at best; score more examples.")
    return sentences


def _verdict(found: Sequence[Table], table: Table) -> str:
    """Return yes or no by the tests that are significant after the correction."""
    passed = [entry for entry in found if significant(entry, table)]
    gains = [label(entry["metric"]) for entry in passed if better(entry["metric"], entry["delta"])]
    worse = [label(entry["metric"]) for entry in passed if better(entry["metric"], -entry["delta"])]
    if gains and worse:
        return f"Better in {listed(gains)}, worse in {listed(worse)}."
    if len(passed) == len(found):
        return "Yes." if gains else "No, it is worse."
    if gains:
        return f"Yes in {listed(gains)}; no significant difference otherwise."
    if worse:
        return f"No: worse in {listed(worse)}, no significant difference otherwise."
    for name, verdict in (("p_same_holm", "No: the same within {}."), ("p_no_worse_holm", "No worse by {} or more.")):
        if all("equivalence" in entry and significant(entry["equivalence"], table, name) for entry in found):
            return verdict.format(f"{found[0]['equivalence']['margin']:g}")
    return "Undecided: no significant difference."


def significant(entry: Table, table: Table, p: str = "p_holm") -> bool:
    """Whether there is a test, and its p-value after the correction is below the level."""
    return entry[p] is not None and bool(entry[p] < alpha_of(table))


def alpha_of(table: Table) -> float:
    """Return the level of the tests."""
    return 1 - float(table["interval"]["confidence"])


def tests_of(table: Table) -> int:
    """Return the number of tests that are corrected together."""
    return sum(entry["p"] is not None and entry["primary"] for entry in table["comparisons"])


def comparisons_of(pair: tuple[str, str], table: Table) -> list[Table]:
    """Return the comparisons of two cells, one per metric."""
    return [entry for entry in table["comparisons"] if (entry["a"], entry["b"]) == pair]


def models(table: Table) -> list[str]:
    """Return the models in the order of the table."""
    return list(dict.fromkeys(row["model"] for row in table["rows"]))


def tuned_rows(table: Table) -> list[Table]:
    """Return the rows of cells, without those of base models."""
    return [row for row in table["rows"] if row["stage"] == "tuned"]


def other_settings(row: Table) -> dict[str, Any]:
    """Return the settings of a row that are not those of its mix."""
    return {key: value for key, value in row["settings"].items() if not key.startswith("data.")}


def data_label(row: Table, start: str = "") -> str:
    """Name a cell within its model: the data, and the settings that differ and begin with `start`."""
    if row.get("stage") == "base":
        return "base model"
    own = [f"{key}={value}" for key, value in row["settings"].items() if key.startswith(start)]
    return " ".join([row["data"], *own])


def p_value(p: float) -> str:
    """Format a p-value."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def brief(entry: Table) -> str:
    """Format a difference with its interval."""
    return f"{signed(entry['delta'])} ({between(entry)})"


def between(entry: Table) -> str:
    """Format an interval."""
    return f"{signed(entry['ci_low'])} to {signed(entry['ci_high'])}"


def signed(value: float) -> str:
    """Format a difference with its sign."""
    return f"{value:+.3f}".replace("-", "−")


def listed(names: Sequence[str]) -> str:
    """Join names: `a, b and c`."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
