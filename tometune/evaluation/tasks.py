"""Tasks: examples with their prompts and references, the same for every run."""

import json
import logging
from dataclasses import dataclass
from hashlib import sha256
from string import Formatter

from tometune.common.errors import UserError
from tometune.common.hub import pinned
from tometune.common.seeding import stream
from tometune.config.eval import EvalConfig, TaskConfig, TaskKind
from tometune.data.sources import content_digest, files_of
from tometune.evaluation.metrics import MODEL_METRICS, identity_of
from tometune.evaluation.rows import Row, collect, reach, read_rows, render

log = logging.getLogger(__name__)

SHUFFLE_SEED = 0
"""Seed of the shuffle that a limit takes a prefix of; fixed, so that every run is scored on the same examples."""

Text = tuple[str, str, str]
"""Task, example, text."""


@dataclass(frozen=True)
class Example:
    """One prompt and its human references."""

    id: str
    """Unique within the task."""

    messages: list[dict[str, str]]
    """Conversation of `{role, content}` that ends with a user message."""

    references: list[str]
    """One or more non-empty texts."""


@dataclass(frozen=True)
class Task:
    """A loaded task."""

    name: str
    """Key under `eval.tasks`."""

    config: TaskConfig

    examples: list[Example]
    """In the order of the source."""

    limited: bool
    """Whether `eval.limit` left examples out, so that the scores are only a trial."""

    digest: str
    """sha256 over everything that can change an answer or a score of a given model."""


def fingerprint(task: TaskConfig, key: str) -> str:
    """Return what identifies a task's rows and the models of its metrics; loads nothing.

    Args:
        task: the task.
        key: full key of the task in the config, e.g. `eval.tasks.qa`.

    Raises:
        UserError: a file is missing.
    """
    match task.kind:
        case TaskKind.hub:
            rows = f"{task.id}@{pinned(f'{key}.id', str(task.id), task.revision, 'dataset')}"
        case TaskKind.jsonl:
            rows = "-".join(sorted(content_digest(file).hex() for file in files_of(task.path, f"{key}.path")))
        case TaskKind.pydocs:
            from tometune.data import pydocs

            rows = f"{pydocs.fingerprint()}/{task.topic}"
    return "; ".join([rows, *(identity_of(metric) for metric in sorted(task.metrics) if metric in MODEL_METRICS)])


def load_tasks(config: EvalConfig) -> list[Task]:
    """Load every task of the config.

    Raises:
        UserError: see `load_task`.
    """
    return [load_task(name, task, config.limit) for name, task in config.tasks.items()]


def load_task(name: str, task: TaskConfig, limit: int | None = None) -> Task:
    """Load a task; rows with the same prompt become one example with all their references, then the limits apply.

    A limit takes a prefix of one fixed shuffle, so the examples of a smaller limit are among those of a larger one.
    They stay in the order of the source.

    Args:
        name: key under `eval.tasks`.
        task: the source of the examples and how they are prompted.
        limit: `eval.limit`, in addition to the task's own.

    Raises:
        UserError: the source is missing or broken, a field is unknown, an example has no reference, or an id occurs
            twice.
    """

    def first(count: int | None) -> list[Example]:
        return [examples[index] for index in sorted(order[:count])]

    key = f"eval.tasks.{name}"
    examples, order = _examples_of(key, task, read_rows(key, task))
    kept = first(min((n for n in (task.limit, limit) if n is not None), default=None))
    about = " ".join(part for part in (task.description, f"({task.licence})" if task.licence else "") if part)
    log.info("task %s: %d of %d examples. %s", name, len(kept), len(order), about)
    metrics = [identity_of(metric) for metric in sorted(task.metrics)]
    content = [task.version, task.max_new_tokens, metrics, [vars(example) for example in kept]]
    digest = sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()
    return Task(name, task, kept, len(kept) < len(first(task.limit)), digest)


def _examples_of(key: str, task: TaskConfig, rows: list[Row]) -> tuple[list[Example], list[int]]:
    """Return all examples, and the indices that the task uses, in the shuffled order of which limits take a prefix."""
    merged: dict[str, Example] = {}
    for number, row in enumerate(rows):
        example = _example(key, task, row, number)
        first = merged.setdefault(json.dumps(example.messages), example)
        first.references[:] = dict.fromkeys([*first.references, *example.references])
    examples = list(merged.values())
    seen: set[str] = set()
    for example in examples:
        if example.id in seen:  # scores are paired by it
            raise UserError(f"{key}: two examples have the id {example.id!r}; give each its own, or none at all")
        seen.add(example.id)
    order = stream(SHUFFLE_SEED, "evaluation examples").permutation(len(examples)).tolist()
    if task.kind is not TaskKind.pydocs:
        return examples, order
    splits = {row.fields["id"]: row.fields["split"] for row in rows}
    if task.split not in splits.values():
        raise UserError(f"{key}.split={task.split}: the documentation has the splits test and validation")
    return examples, [index for index in order if splits[examples[index].id] == task.split]


def _example(key: str, task: TaskConfig, row: Row, number: int) -> Example:
    """Make an example of one row; its id is the field `id`, else the row's number."""
    prompt = render(task.prompt, row.fields, f"{key}.prompt", row.origin)
    if not prompt:
        raise UserError(f"{key}.prompt: {row.origin} gives an empty prompt; delete the row or change the template")
    messages = [{"role": "user", "content": prompt}]
    if task.system is not None:
        messages.insert(0, {"role": "system", "content": task.system})
    identifier = row.fields.get("id")
    references = collect(task.references, row.fields, f"{key}.references", row.origin)
    return Example(str(number if identifier is None else identifier), messages, references)


def texts_of_task(name: str, task: TaskConfig) -> list[Text]:
    """Return the texts of a task that training data must not contain: fields in the prompt, and references.

    The words of the prompt template are left out, because they are in all prompts and in much training data too. All
    examples count, whatever the limits, so that a trial with few examples draws the same mix.

    Raises:
        UserError: see `load_task`.
    """
    key = f"eval.tasks.{name}"
    rows = read_rows(key, task)
    examples, order = _examples_of(key, task, rows)
    owner = {json.dumps(example.messages): example.id for example in examples}
    used = {examples[number].id for number in order}
    fields = [field for _, field, _, _ in Formatter().parse(task.prompt) if field]
    texts = []
    for number, row in enumerate(rows):
        example = owner[json.dumps(_example(key, task, row, number).messages)]  # shared by rows with the same prompt
        if example in used:
            shown = [", ".join(reach(row.fields, field)) for field in fields]
            references = collect(task.references, row.fields, f"{key}.references", row.origin)
            texts += [(name, example, text) for text in (*shown, *references)]
    return texts
