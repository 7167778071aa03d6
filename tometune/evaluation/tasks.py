"""Tasks: examples with their prompts and references, the same for every run."""

import json
import logging
from dataclasses import dataclass
from hashlib import sha256

from tometune.common.errors import UserError
from tometune.common.seeding import stream
from tometune.config.eval import EvalConfig, TaskConfig, TaskKind
from tometune.evaluation.sources import Row, fingerprint, read_rows
from tometune.evaluation.templates import collect, render

__all__ = ["Example", "Task", "fingerprint", "load_task", "load_tasks"]

log = logging.getLogger(__name__)

DRAW = 0
"""Seed of the draw under a limit: fixed, so that every run is scored on the same examples."""


@dataclass(frozen=True)
class Example:
    """One prompt and its human references."""

    id: str
    """Unique in the task."""

    messages: list[dict[str, str]]
    """Conversation of `{role, content}`, the last one the user's."""

    references: list[str]
    """One or more non-empty texts."""


@dataclass(frozen=True)
class Task:
    """A loaded task."""

    name: str
    """Key under `eval.tasks`."""

    config: TaskConfig
    """What it was loaded from."""

    examples: list[Example]
    """In the order of the source."""

    limited: bool
    """Whether `eval.limit` left examples out; such scores are for trying things out."""

    digest: str
    """sha256 over everything that can change a prediction or a score of a given model."""


def load_tasks(config: EvalConfig) -> list[Task]:
    """Load every task of the config.

    Raises:
        UserError: see `load_task`.
    """
    return [load_task(name, task, config.limit) for name, task in config.tasks.items()]


def load_task(name: str, task: TaskConfig, limit: int | None = None) -> Task:
    """Load a task: rows of one prompt are one example with all their references, then the limits apply.

    A limit takes the first examples of one fixed shuffle, so a smaller limit's examples are among a larger one's;
    they stay in the order of the source.

    Args:
        name: key under `eval.tasks`.
        task: where the examples come from and how they are asked.
        limit: `eval.limit`, on top of the task's own.

    Raises:
        UserError: the source is missing or broken, a field is unknown, an example has no reference, or an id is twice.
    """
    key = f"eval.tasks.{name}"
    examples, order = examples_of(key, task, read_rows(key, task))
    own = _draw(examples, order, task.limit)
    kept = _draw(examples, order, min((n for n in (task.limit, limit) if n is not None), default=None))
    about = " ".join(part for part in (task.description, f"({task.licence})" if task.licence else "") if part)
    log.info("task %s: %d of %d examples. %s", name, len(kept), len(order), about)
    return Task(name, task, kept, len(kept) < len(own), _digest(task, kept))


def examples_of(key: str, task: TaskConfig, rows: list[Row]) -> tuple[list[Example], list[int]]:
    """Return the examples of rows, and which of them the task has, in the order of which limits take the first.

    Args:
        key: full key of the task in the config, e.g. `eval.tasks.qa`.
        task: the task.
        rows: of its source.

    Raises:
        UserError: a field is unknown, an example has no reference, or an id is twice.
    """
    examples = _merge([rendered(key, task, row, number) for number, row in enumerate(rows)])
    _check_ids(key, examples)
    order = stream(DRAW, "evaluation examples").permutation(len(examples)).tolist()
    return examples, _of_split(examples, order, rows, key, task.split) if task.kind is TaskKind.pydocs else order


def rendered(key: str, task: TaskConfig, row: Row, number: int) -> Example:
    """Render one row; its id is the field `id`, else its number."""
    prompt = render(task.prompt, row.fields, f"{key}.prompt", row.origin)
    if not prompt:
        raise UserError(f"{key}.prompt: {row.origin} gives an empty prompt; remove the row or change the template")
    messages = [{"role": "user", "content": prompt}]
    if task.system is not None:
        messages.insert(0, {"role": "system", "content": task.system})
    identifier = row.fields.get("id")
    references = collect(task.references, row.fields, f"{key}.references", row.origin)
    return Example(str(number if identifier is None else identifier), messages, references)


def _merge(examples: list[Example]) -> list[Example]:
    """Join examples of the same prompt: a data set with one row a reference would count them as several."""
    merged: dict[str, Example] = {}
    for example in examples:
        prompt = json.dumps(example.messages)
        first = merged.setdefault(prompt, example)
        if first is not example:
            references = list(dict.fromkeys([*first.references, *example.references]))
            merged[prompt] = Example(first.id, first.messages, references)
    return list(merged.values())


def _check_ids(key: str, examples: list[Example]) -> None:
    """Refuse two examples of one id: scores are paired by it."""
    seen: set[str] = set()
    for example in examples:
        if example.id in seen:
            raise UserError(f"{key}: two examples have the id {example.id!r}; give each its own, or none at all")
        seen.add(example.id)


def _draw(examples: list[Example], order: list[int], limit: int | None) -> list[Example]:
    """Return the first `limit` examples of an order, in the order of the source."""
    return [examples[index] for index in sorted(order[:limit])]


def _of_split(examples: list[Example], order: list[int], rows: list[Row], key: str, split: str) -> list[int]:
    """Return the documentation examples that are in a split, in the given order."""
    splits = {row.fields["id"]: row.fields["split"] for row in rows}
    if split not in splits.values():
        raise UserError(f"{key}.split={split}: no such split of the documentation; use test or validation")
    return [index for index in order if splits[examples[index].id] == split]


def _digest(task: TaskConfig, examples: list[Example]) -> str:
    """Hash the examples and the settings of generation and scoring."""
    content = [task.version, task.max_new_tokens, sorted(task.metrics), [vars(example) for example in examples]]
    return sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()
