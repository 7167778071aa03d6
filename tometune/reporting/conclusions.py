"""The answer to a sweep's question in sentences."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tometune.evaluation.metrics import better, label
from tometune.runs.inputs import ADDED

LIMIT = "LIMIT: only some examples were scored (eval.limit); this is a trial, not a result"
NOTHING_TO_COMPARE = "There is nothing to compare: no two cells of one model differ in exactly one setting."

Table = Mapping[str, Any]


class Answer(NamedTuple):
    """A question about two cells and its answer; the verdict is a few words: yes, no, not significant."""

    question: str
    verdict: str
    sentences: list[str]


def answers(table: Table) -> list[Answer]:
    """Answer which sources matter, if any are varied; each question of `headline`; and why.

    The last answer before the reasons also lists the other significant differences.
    """
    groups, sources, found, answered = headline(table), source_effects(table), [], set()
    if sources:
        own = next(iter(sources.values())).values()
        metric = main_metric([entry for entry in own if entry["primary"]] or list(own))
        found.append(_sources_answer({name: entries[metric] for name, entries in sources.items()}, table))
        answered = {(entries[metric]["a"], entries[metric]["b"], metric) for entries in sources.values()}
    found += _amounts_answer([pair for pairs in groups for pair in pairs], table)
    for pairs in groups:
        every = [entry for pair in pairs for entry in comparisons_of(pair, table)]
        metric = main_metric([entry for entry in every if entry["primary"]] or every)
        same = [entry for entry in every if entry["metric"] == metric]
        found.append(_answer(pairs[0], table) if len(pairs) == 1 else _answer_by_value(same, table))
        answered |= {(each["a"], each["b"], each["metric"]) for each in (every if len(pairs) == 1 else same)}
    others = []
    for pair in dict.fromkeys((entry["a"], entry["b"]) for entry in table["comparisons"] if significant(entry, table)):
        differences = [
            f"{label(entry['metric'])} {signed(entry['delta'])}"
            for entry in comparisons_of(pair, table)
            if significant(entry, table) and (*pair, entry["metric"]) not in answered
        ]
        if differences:
            others.append(f"{pair[0]} vs. {pair[1]} ({listed(differences)})")
    if found and others:
        found[-1].sentences.append(f"Other significant differences: {'; '.join(others)}.")
    explained = [Answer(*(entry[name] for name in Answer._fields)) for entry in table.get("explanations", [])]
    return found + explained


def _amounts_answer(pairs: Sequence[tuple[str, str]], table: Table) -> list[Answer]:
    """Return whether any amount of rows, added to the same mix, is better than the mix alone; empty if none is asked.

    The cells are named `MIX` and `MIX_plus_AMOUNT`, see `runs.inputs.file_mix`.
    """
    asked = {(entry["a"], entry["b"]): None for entry in table["comparisons"] if entry["primary"]}
    amounts = {pair: pair[0].partition(ADDED)[2] for pair in asked if pair[0].startswith(f"{pair[1]}{ADDED}")}
    if not amounts or any(pair not in amounts for pair in pairs):
        return []
    pairs = list(amounts)
    found = {pair: [entry for entry in comparisons_of(pair, table) if entry["primary"]] for pair in amounts}
    words: dict[str, list[str]] = {"Yes": [], "No, it harms": [], "Better in some metrics, worse in others": []}
    for pair, amount in amounts.items():
        passed = [entry for entry in found[pair] if significant(entry, table)]
        signs = {better(entry["metric"], entry["delta"]) for entry in passed}
        names = listed([label(entry["metric"]) for entry in passed])
        for word, meaning in zip(words, ({True}, {False}, {True, False}), strict=True):
            words[word] += [f"{amount} rows ({names})"] if signs == meaning else []
    verdict = " ".join(f"{word}: {listed(cells)}." for word, cells in words.items() if cells)
    if any(entry["p"] is None for entries in found.values() for entry in entries):
        verdict = "A single seed cannot tell."
    elif not verdict:
        verdict = "Undecided: no amount makes a significant difference."
    elif sum(map(len, words.values())) < len(pairs):
        verdict += " No significant difference otherwise."
    texts = {pair: [f"{label(entry['metric'])} {brief(entry)}" for entry in found[pair]] for pair in pairs}
    effects = [f"{amount} rows: {', '.join(texts[pair])}" for pair, amount in amounts.items()]
    level = f"{table['interval']['confidence']:.0%} intervals"
    sentence = f"Difference from {pairs[0][1]} alone, with {level}: {'; '.join(effects)}."
    return [Answer(f"Does adding rows to {pairs[0][1]} help?", verdict, [sentence])]


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
            mixes = [_mix_label(rows[cell]) for cell in pair]
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


def other_settings(row: Table) -> dict[str, Any]:
    """Return the settings of a row that are not those of its mix."""
    return {key: value for key, value in row["settings"].items() if not key.startswith("data.")}


def _mix_label(row: Table) -> str:
    """Name the mix of a row: the data and the settings of it that differ."""
    return " ".join([row["data"], *(f"{k}={v}" for k, v in row["settings"].items() if k.startswith("data."))])


def source_effects(table: Table) -> dict[str, dict[str, Table]]:
    """Return the effect of having each source, or only it, in the mix: by source, then by metric.

    Each is a comparison with the mix of all sources, with the sign turned where the arm leaves the source out.
    """
    rows = {row["cell"]: row for row in tuned_rows(table)}
    found: dict[str, dict[str, Table]] = {}
    for entry in table["comparisons"]:
        a, b = rows[entry["a"]], rows[entry["b"]]
        if bool(a["arm"]) == bool(b["arm"]) or a["rows"] != b["rows"]:
            continue
        ((kind, sources),) = (a["arm"] or b["arm"]).items()
        sign = 1 if bool(a["arm"]) == (kind == "only") else -1
        low, high = sorted(sign * end + 0.0 for end in (entry["ci_low"], entry["ci_high"]))
        name = sources[0] if len(sources) == 1 else f"{len(sources)} others"
        name = f"{a['model']} {name}" if len(models(table)) > 1 else name
        turned = {"delta": sign * entry["delta"] + 0.0, "ci_low": low, "ci_high": high, "kind": kind}
        found.setdefault(name, {})[entry["metric"]] = {**entry, **turned}
    return found


def main_metric(entries: Sequence[Table]) -> str:
    """Return the metric that one sentence is about: ROUGE-L if it is there, else the first."""
    metrics = [str(entry["metric"]) for entry in entries]
    return "rougeL" if "rougeL" in metrics else metrics[0]


def _sources_answer(found: Mapping[str, Table], table: Table) -> Answer:
    """Return which sources have a significant effect, and all effects; `found` has those on one metric."""
    first = next(iter(found.values()))
    only = first["kind"] == "only"
    verdict = _verdict_by_name(found, table, ("Better: ", "Worse: ") if only else ("Helps: ", "Harms: "))
    numbers, what = _numbers(dict(sorted(found.items(), key=lambda effect: -effect[1]["delta"])), table)
    question = "Is a single source better than all of them together?" if only else "Which sources matter?"
    having = "only this source instead of all" if only else "this source in the mix"
    return Answer(
        question, verdict, [f"Effect on {label(first['metric'])} of having {having}, with {what}: {numbers}."]
    )


def _verdict_by_name(found: Mapping[str, Table], table: Table, words: tuple[str, str]) -> str:
    """Return which of several comparisons on one metric are significant; `words` precede the better and worse ones."""
    passed = {n: better(entry["metric"], entry["delta"]) for n, entry in found.items() if significant(entry, table)}
    groups = {word: [name for name in passed if passed[name] is (word == words[0])] for word in words}
    verdict = " ".join(f"{word}{listed(names)}." for word, names in groups.items() if names)
    if not passed:
        verdict = "Undecided: no significant effect."
    elif len(passed) < len(found):
        verdict += " No significant effect otherwise."
    tests = {name: entry.get("equivalence") for name, entry in found.items() if name not in passed}
    same = [name for name, each in tests.items() if each and (each["p_same_holm"] or 0) < alpha_of(table)]
    if same:
        within = f"The same within {table['question']['margin']:g}: {listed(same)}."
        verdict = within if len(same) == len(found) else f"{verdict} {within}"
    if any(entry["p"] is None for entry in found.values()):
        verdict = "A single seed cannot tell."
    elif not next(iter(found.values()))["primary"]:
        verdict = "Not asked: these comparisons are exploratory."
    return verdict


def _numbers(found: Mapping[str, Table], table: Table) -> tuple[str, str]:
    """Return the differences on one metric by name, and what is given with each of them."""
    tested = next(iter(found.values()))["p_holm"] is not None
    texts = [
        f"{name} {signed(entry['delta'])} ({between(entry)}{', ' + p_value(entry['p_holm']) if tested else ''})"
        for name, entry in found.items()
    ]
    level = f"{table['interval']['confidence']:.0%} intervals"
    return ", ".join(texts), f"{level} and Holm-corrected p-values" if tested else level


def brief(entry: Table) -> str:
    """Format a difference with its interval."""
    return f"{signed(entry['delta'])} ({between(entry)})"


def significant(entry: Table, table: Table) -> bool:
    """Whether a comparison is significant after the correction."""
    return entry["p_holm"] is not None and entry["p_holm"] < alpha_of(table)


def alpha_of(table: Table) -> float:
    """Return the level of the tests."""
    return 1 - float(table["interval"]["confidence"])


def comparisons_of(pair: tuple[str, str], table: Table) -> list[Table]:
    """Return the comparisons of two cells, one per metric."""
    return [entry for entry in table["comparisons"] if (entry["a"], entry["b"]) == pair]


def models(table: Table) -> list[str]:
    """Return the models in the order of the table."""
    return list(dict.fromkeys(row["model"] for row in table["rows"]))


def tuned_rows(table: Table) -> list[Table]:
    """Return the rows of cells, without those of base models."""
    return [row for row in table["rows"] if row["stage"] == "tuned"]


def tests_of(table: Table) -> int:
    """Return the number of tests that are corrected together."""
    return sum(entry["p"] is not None and entry["primary"] for entry in table["comparisons"])


def _answer(pair: tuple[str, str], table: Table) -> Answer:
    found = sorted(comparisons_of(pair, table), key=lambda entry: not entry["primary"])
    model = next(row["model"] for row in table["rows"] if row["cell"] == pair[0])
    a, b = (cell.removeprefix(f"{model} ") for cell in pair)
    question = f"Is {a} better than {b}?" if a == pair[0] else f"{model}: is {a} better than {b}?"
    level = f"{table['interval']['confidence']:.0%} interval"
    differences = [
        f"{label(entry['metric'])} {signed(entry['delta'])} ({level} {between(entry)}"
        + ("" if entry["p_holm"] is None else f", Holm-corrected {p_value(entry['p_holm'])}")
        + (")" if entry["primary"] else ", exploratory)")
        for entry in found
    ]
    sentences = [f"{', '.join(differences)}."]
    if any(entry["metric"] == "nll" for entry in found):
        sentences.append("NLL is in bits per byte of the references; lower is better.")
    if any(entry["interval_over"] == "examples" for entry in found):
        sentences.append(
            "At least one of the two cells has a single seed, so the deviation over seeds is unknown: the intervals "
            "cover examples only, and no test is possible. Add seeds, e.g. seed=0,1,2."
        )
        return Answer(question, "A single seed cannot tell.", sentences)
    found = [entry for entry in found if entry["primary"]]
    if not found:
        return Answer(question, "Not asked: these comparisons are exploratory.", sentences)
    uncorrected = [label(entry["metric"]) for entry in found if entry["p"] < alpha_of(table)]
    if uncorrected and not any(significant(entry, table) for entry in found):
        sentences.append(
            f"Before the correction for {tests_of(table)} tests, {listed(uncorrected)} would be significant; "
            "with that many tests, such a result is likely to occur by chance."
        )
    if "equivalence" in found[0]:
        sentences.append(_equivalence(found, table))
    sentences.append(_seeds(found))
    floor = max(found, key=lambda entry: entry["examples_deviation"])
    smallest = 2.8 * floor["examples_deviation"]  # (z at 0.975) + (z at 0.8), times the standard error
    if smallest > floor["seeds_needed"]["difference"]:
        sentences.append(
            f"With this number of examples, differences below {smallest:.3f} ({label(floor['metric'])}) cannot be "
            "detected reliably with any number of seeds; score more examples."
        )
    return Answer(question, _verdict(found, table), sentences)


def _answer_by_value(entries: Sequence[Table], table: Table) -> Answer:
    """Answer on one metric whether a mix is better than another at each value of a setting."""
    rows = {row["cell"]: row for row in tuned_rows(table)}
    settings = [other_settings(rows[entry["a"]]) for entry in entries]
    keys = [key for key in settings[0] if len({str(values.get(key)) for values in settings}) > 1]
    found = {" ".join(str(own.get(key)) for key in keys): each for own, each in zip(settings, entries, strict=True)}
    key, (a, b) = " and ".join(keys), (_mix_label(rows[entries[0][name]]) for name in "ab")
    numbers, what = _numbers(found, table)
    model = f"{rows[entries[0]['a']]['model']}: is" if len(models(table)) > 1 else "Is"
    sentences = [
        f"{label(entries[0]['metric'])} of {a} − {b} by {key}, with {what}: {numbers}.",
        "A difference that is significant at one value only may be the same at all of them; compare the intervals.",
    ]
    verdict = _verdict_by_name(found, table, (f"Better at {key}=", f"Worse at {key}="))
    return Answer(f"{model} {a} better than {b} at each {key}?", verdict, sentences)


def _equivalence(found: Sequence[Table], table: Table) -> str:
    """Return what two one-sided tests say of each metric."""
    texts = []
    for entry in found:
        tests, conclusion = entry["equivalence"], "neither is shown"
        p_no_worse, p_same = tests["p_no_worse_holm"], tests["p_same_holm"]
        if p_same < alpha_of(table):
            conclusion = f"the same within {tests['margin']:g}, Holm-corrected {p_value(p_same)}"
        elif p_no_worse < alpha_of(table):
            conclusion = f"no worse by {tests['margin']:g} or more, Holm-corrected {p_value(p_no_worse)}"
        texts.append(f"{label(entry['metric'])} {between(tests)} ({conclusion})")
    level = f"{1 - 2 * alpha_of(table):.0%}"
    return f"Equivalence by two one-sided tests, with {level} intervals: {', '.join(texts)}."


def _verdict(found: Sequence[Table], table: Table) -> str:
    """Return yes or no by the tests that are significant after the correction."""
    passed = [entry for entry in found if significant(entry, table)]
    gains = [label(entry["metric"]) for entry in passed if better(entry["metric"], entry["delta"])]
    worse = [label(entry["metric"]) for entry in passed if better(entry["metric"], -entry["delta"])]
    if gains and worse:
        return f"Better in {listed(gains)}, worse in {listed(worse)}."
    if gains:
        return "Yes." if len(gains) == len(found) else f"Yes in {listed(gains)}; no significant difference otherwise."
    if worse and len(worse) == len(found):
        return "No, it is worse."
    if worse:
        return f"No: worse in {listed(worse)}, no significant difference otherwise."
    for name, verdict in (("p_same_holm", "No: the same within {}."), ("p_no_worse_holm", "No worse by {} or more.")):
        if all("equivalence" in entry and entry["equivalence"][name] < alpha_of(table) for entry in found):
            return verdict.format(f"{found[0]['equivalence']['margin']:g}")
    return "Undecided: no significant difference."


def _seeds(found: Sequence[Table]) -> str:
    """Return how many seeds would detect the difference in question."""

    def count(number: int | None) -> str:
        return "more than 100,000" if number is None else f"{number:,}"

    needed = [entry["seeds_needed"] for entry in found]
    numbers = ", ".join(
        f"about {count(need['n'])} for {label(entry['metric'])} ({count(need['low'])} to {count(need['high'])})"
        for entry, need in zip(found, needed, strict=True)
    )
    seeds = " and ".join(str(number) for number in dict.fromkeys(found[0]["seeds"]))
    return (
        f"Seeds per arm needed to detect a difference of {needed[0]['difference']} with {needed[0]['power']:.0%} power:"
        f" {numbers}. The ranges reflect how uncertain a standard deviation from {seeds} seeds is."
    )


def data_label(row: Table) -> str:
    """Name a cell within its model: the data and the settings that differ."""
    if row["stage"] == "base":
        return "base model"
    return " ".join([row["data"], *(f"{key}={value}" for key, value in row["settings"].items())])


def p_value(p: float) -> str:
    """Format a p-value."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def between(entry: Table) -> str:
    """Format an interval."""
    return f"{signed(entry['ci_low'])} to {signed(entry['ci_high'])}"


def signed(value: float) -> str:
    """Format a difference with its sign."""
    return f"{value:+.3f}".replace("-", "−")


def listed(names: Sequence[str]) -> str:
    """Join names: `a, b and c`."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
