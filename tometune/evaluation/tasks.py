"""Tasks: the rows of a source, and the examples made from them, the same for every run."""

import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256

import numpy as np

from tometune.common.errors import UserError
from tometune.common.hub import pinned
from tometune.common.seeding import stream
from tometune.config.data import SourceConfig, SourceKind
from tometune.config.eval import HELD_OUT, EvalConfig, TaskConfig, TaskKind
from tometune.data.conversations import fix_conversation, is_trained
from tometune.data.formats import Reader
from tometune.data.local_files import Batch, batches
from tometune.data.sources import content_digest, files_of, read
from tometune.data.standardise import Standardised
from tometune.data.turns import FormatError
from tometune.evaluation.fields import Row, collect, names_in, reach, render
from tometune.evaluation.harness import load_harness
from tometune.evaluation.metrics import METRICS, identity_of, needs_unicode

log = logging.getLogger(__name__)

DEFAULT = TaskConfig()
SHUFFLE_SEED = 0  # of the shuffle that a limit takes a prefix of: every run is scored on the same examples


@dataclass(frozen=True)
class Example:
    """One prompt and its human references."""

    id: str  # unique within the task
    messages: list[dict[str, str]]  # conversation of `{role, content}` that ends with a user message
    references: list[str]  # one or more non-empty texts
    texts: list[str]  # the fields in the prompt and the references, which training data must not contain
    unread: set[str] = field(default_factory=set)  # fields of its row that were not read
    source: str | None = None  # of a held-out row
    cluster: str | None = None  # value of the task's `cluster` field; of joined rows, that of the first


@dataclass(frozen=True)
class Task:
    """A loaded task."""

    name: str  # key under `eval.tasks`
    config: TaskConfig
    examples: list[Example]  # in the order of the source
    limited: bool  # whether `eval.limit` left examples out, so that the scores are only a trial
    digest: str  # sha256 over everything that can change an answer or a score of a given model


def fingerprint(task: TaskConfig, key: str) -> str:
    """Return what identifies a task's rows and the models of its metrics; loads nothing.

    `key` is the full key of the task in the config, e.g. `eval.tasks.qa`.

    Raises:
        UserError: a file is missing.
    """
    match task.kind:
        case TaskKind.hub:
            rows = f"{task.id}@{pinned(f'{key}.id', str(task.id), task.revision, 'dataset')}"
        case TaskKind.jsonl:
            files = files_of(task.path, f"{key}.path", task.split)
            rows = "-".join(sorted(content_digest(file).hex() for file in files))
        case TaskKind.pydocs:
            from tometune.data import pydocs

            rows = f"{pydocs.fingerprint()}/{task.topic}"
    return "; ".join([rows, *(identity_of(metric) for metric in sorted(task.metrics) if metric not in METRICS)])


def load_tasks(config: EvalConfig) -> list[Task]:
    """Load every task of the config, and those of `eval.harness` to check them; raises like `load_task`."""
    load_harness(tuple(config.harness))
    return [load_task(name, with_metrics(task, config), config.limit) for name, task in config.tasks.items()]


def with_metrics(task: TaskConfig, config: EvalConfig) -> TaskConfig:
    """Return a task with the metrics of `eval.metrics` after its own."""
    return replace(task, metrics=list(dict.fromkeys([*task.metrics, *config.metrics]))) if config.metrics else task


def load_task(name: str, task: TaskConfig, limit: int | None = None) -> Task:
    """Load a task; rows with the same prompt become one example with all their references, then the limits apply.

    A limit takes a prefix of one fixed shuffle, so the examples of a smaller limit are among those of a larger one.
    `name` is the key under `eval.tasks`, `limit` is `eval.limit`, in addition to the task's own.

    Raises:
        UserError: the source is missing or broken, a field is unknown, an example has no reference, or an id occurs
            twice.
    """
    examples, order = _examples_of(f"eval.tasks.{name}", task)
    own = order[: task.limit]
    kept = [examples[index] for index in sorted(own[:limit])]
    about = " ".join(part for part in (task.description, f"({task.licence})" if task.licence else "") if part)
    log.info("task %s: %d of %d examples. %s", name, len(kept), len(order), about)
    return _task(name, task, kept, len(kept) < len(own))


def held_out_tasks(rows: Mapping[str, tuple[Standardised, np.ndarray]], config: EvalConfig) -> list[Task]:
    """Return a task per origin of the held-out rows of a mix, `held_out_base` and `held_out_pool`.

    The last answer of a row is the reference, and what precedes it the prompt.
    """
    tasks = []
    for origin, (source, numbers) in rows.items():
        examples = []
        for row in source.rows.select(numbers[: config.limit]):
            *asked, answer = row["messages"]
            name, texts = row["source"], [turn["content"] for turn in row["messages"]]
            examples.append(Example(row["key"].hex(), asked, [answer["content"].strip()], texts, source=name))
        limited = len(examples) < len(numbers)
        tasks.append(_task(f"{HELD_OUT}{origin}", with_metrics(TaskConfig(), config), examples, limited))
    return tasks


def _task(name: str, task: TaskConfig, kept: list[Example], limited: bool) -> Task:
    metrics = [identity_of(metric) for metric in sorted(task.metrics)]
    other_scripts = sum(any(map(needs_unicode, example.references)) for example in kept)
    if other_scripts:
        metrics.append("rouge by Unicode words")
        log.info("task %s: examples that ROUGE compares by Unicode words: %d", name, other_scripts)
    asked = [{"id": one.id, "messages": one.messages, "references": one.references} for one in kept]
    content = json.dumps([task.version, task.max_new_tokens, metrics, asked], ensure_ascii=False)
    return Task(name, task, kept, limited, sha256(content.encode()).hexdigest())


def texts_of_task(name: str, task: TaskConfig) -> list[tuple[str, str, str]]:
    """Return task, example and text of everything that training data must not contain; raises like `load_task`.

    These are fields in the prompt and references. The words of the prompt template are left out, because they are in
    all prompts and in much training data too. All examples count, whatever the limits, so that a trial with few
    examples draws the same mix.
    """
    examples, order = _examples_of(f"eval.tasks.{name}", task)
    return [(name, examples[index].id, text) for index in sorted(order) for text in examples[index].texts]


def _examples_of(key: str, task: TaskConfig) -> tuple[list[Example], list[int]]:
    """Return all examples, and the indices that the task uses, in the shuffled order of which limits take a prefix."""
    rows = read_rows(key, task)
    made = [_example(key, task, row, number) for number, row in enumerate(rows)]
    if task.cluster is not None:
        clusters = _clusters(f"{key}.cluster", task.cluster, rows)
        made = [replace(example, cluster=cluster) for example, cluster in zip(made, clusters, strict=True)]
    empty = [row.origin for row, example in zip(rows, made, strict=True) if not example.references]
    if empty:
        raise UserError(
            f"{key}.references: {len(empty)} of {len(rows)} rows have no reference with any text, first {empty[0]}; "
            "delete these rows, or name another field"
        )
    merged: dict[str, Example] = {}
    for example in made:
        first = merged.setdefault(json.dumps(example.messages), example)
        if first is not example:
            first.references[:] = dict.fromkeys([*first.references, *example.references])
            first.texts.extend(example.texts)
    unread = Counter(name for example in made for name in example.unread - {"id"})
    examples = list(merged.values())
    if len(examples) < len(rows):
        log.info("%s: %d rows repeat a prompt; their references are joined", key, len(rows) - len(examples))
    if unread and task.kind is TaskKind.jsonl:
        log.info("%s: not read: %s", key, ", ".join(f"{name} {count:,}" for name, count in unread.most_common()))
    repeated = [name for name, count in Counter(example.id for example in examples).items() if count > 1]
    if repeated:  # scores are paired by it
        raise UserError(f"{key}: two examples have the id {repeated[0]!r}; give each its own, or none at all")
    order = stream(SHUFFLE_SEED, "evaluation examples").permutation(len(examples)).tolist()
    if task.kind is not TaskKind.pydocs:
        return examples, order
    splits = {row.fields["id"]: row.fields["split"] for row in rows}
    if task.split not in splits.values():
        raise UserError(f"{key}.split={task.split}: the documentation has the splits test and validation")
    return examples, [index for index in order if splits[examples[index].id] == task.split]


def _clusters(key: str, field: str, rows: list[Row]) -> list[str]:
    found = [" ".join(reach(row.fields, field, f"{key}: {row.origin}")) for row in rows]
    if "" in found:
        raise UserError(f"{key}: {rows[found.index('')].origin}: {field} is empty; fill it in, or name another field")
    if len(set(found)) == 1:
        raise UserError(f"{key}: {field} is {found[0]!r} in every row; name a field that differs, or none")
    return found


def _example(key: str, task: TaskConfig, row: Row, number: int) -> Example:
    """Make an example of one row; its id is the field `id`, else the number of the row."""
    identifier = str(number if row.fields.get("id") is None else row.fields["id"])
    if (task.prompt, task.references) == (DEFAULT.prompt, DEFAULT.references) and "references" not in row.fields:
        found = _of_training_row(key, task, row, identifier)
        if found is not None:
            return found
    prompt, values = render(task.prompt, row, f"{key}.prompt")
    if not prompt:
        raise UserError(f"{key}.prompt: {row.origin} gives an empty prompt; delete the row or change the template")
    template = ("{system}" if "system" in row.fields else "") if task.system is None else task.system
    system = render(template, row, f"{key}.system")[0]
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": prompt})
    references = collect(task.references, row, f"{key}.references")
    unread = {name for name, value in row.fields.items() if value} - names_in(task) - {"id"}
    return Example(identifier, messages, references, [*values, *references], unread)


def _of_training_row(key: str, task: TaskConfig, row: Row, identifier: str) -> Example | None:
    """Return the example of a row in a shape of training data, or None if it has no such shape.

    The last answer is the reference, and what precedes it the prompt. The system text is not in `texts`.
    """
    try:
        found = Reader(SourceConfig(), key).read(row.fields)
    except FormatError:
        return None
    turns, _ = fix_conversation(found.turns)
    answers = [number for number, turn in enumerate(turns) if turn.role == "assistant" and is_trained(turn)]
    turns = turns[: max(answers, default=0) + 1]
    if found.dropped or len(turns) < 2:
        return None
    if found.tools or any(turn.extra and "tool_calls" in turn.extra for turn in turns):
        raise UserError(f"{key}: {row.origin} holds tools or tool calls, which a task cannot ask for; delete the row")
    messages = [{"role": turn.role, "content": turn.text} for turn in turns[:-1]]
    if task.system is not None and messages[0]["role"] != "system":
        system = render(task.system, row, f"{key}.system")[0]
        messages[:0] = [{"role": "system", "content": system}] if system else []
        found.unread.difference_update(names_in(replace(task, prompt="", references=[])))
    texts = [turn.text for turn in turns if turn.role != "system"]
    references = [text for text in texts[-1:] if text.strip()]
    return Example(identifier, messages, references, texts, found.unread)


def read_rows(key: str, task: TaskConfig) -> list[Row]:
    """Return the rows of a task in the order of its source.

    Raises:
        UserError: the source is missing, broken or empty.
    """
    found: Iterable[Batch]
    match task.kind:
        case TaskKind.hub:
            found = read(SourceConfig(id=task.id, revision=task.revision, subset=task.subset, split=task.split), key)
        case TaskKind.jsonl:
            found = read(SourceConfig(kind=SourceKind.files, path=task.path, split=task.split), key)
        case TaskKind.pydocs:
            from tometune.data import pydocs

            found = batches(pydocs.examples(task.topic or ""), f"pydocs {task.topic}")
    rows = [Row(fields, batch.where(index)) for batch in found for index, fields in enumerate(batch.checked_rows())]
    if not rows:
        raise UserError(f"{key}: {task.path or task.id or task.topic} has no examples; choose a source that has some")
    return rows
