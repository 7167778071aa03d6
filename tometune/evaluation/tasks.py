"""Tasks: the rows of a source, and the examples made from them, the same for every run."""

import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from string import Formatter
from typing import Any

from tometune.common.errors import UserError, did_you_mean
from tometune.common.hub import pinned
from tometune.common.seeding import stream
from tometune.config.data import SourceConfig, SourceKind
from tometune.config.eval import EvalConfig, TaskConfig, TaskKind
from tometune.data.readers import Batch, batches
from tometune.data.sources import content_digest, files_of, read
from tometune.evaluation.metrics import MODEL_METRICS, identity_of

log = logging.getLogger(__name__)

SHUFFLE_SEED = 0  # of the shuffle that a limit takes a prefix of: every run is scored on the same examples
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Row:
    """One raw row of a source."""

    fields: dict[str, Any]
    origin: str  # its file and line, for error messages


@dataclass(frozen=True)
class Example:
    """One prompt and its human references."""

    id: str  # unique within the task
    messages: list[dict[str, str]]  # conversation of `{role, content}` that ends with a user message
    references: list[str]  # one or more non-empty texts
    texts: list[str]  # the fields in the prompt and the references, which training data must not contain


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
            rows = "-".join(sorted(content_digest(file).hex() for file in files_of(task.path, f"{key}.path")))
        case TaskKind.pydocs:
            from tometune.data import pydocs

            rows = f"{pydocs.fingerprint()}/{task.topic}"
    return "; ".join([rows, *(identity_of(metric) for metric in sorted(task.metrics) if metric in MODEL_METRICS)])


def load_tasks(config: EvalConfig) -> list[Task]:
    """Load every task of the config; raises like `load_task`."""
    return [load_task(name, task, config.limit) for name, task in config.tasks.items()]


def load_task(name: str, task: TaskConfig, limit: int | None = None) -> Task:
    """Load a task; rows with the same prompt become one example with all their references, then the limits apply.

    A limit takes a prefix of one fixed shuffle, so the examples of a smaller limit are among those of a larger one.

    Args:
        name: key under `eval.tasks`.
        task: the settings of the task.
        limit: `eval.limit`, in addition to the task's own.

    Raises:
        UserError: the source is missing or broken, a field is unknown, an example has no reference, or an id occurs
            twice.
    """
    examples, order = _examples_of(f"eval.tasks.{name}", task)
    own = order[: task.limit]
    kept = [examples[index] for index in sorted(own[:limit])]
    about = " ".join(part for part in (task.description, f"({task.licence})" if task.licence else "") if part)
    log.info("task %s: %d of %d examples. %s", name, len(kept), len(order), about)
    metrics = [identity_of(metric) for metric in sorted(task.metrics)]
    asked = [{"id": one.id, "messages": one.messages, "references": one.references} for one in kept]
    content = json.dumps([task.version, task.max_new_tokens, metrics, asked], ensure_ascii=False)
    return Task(name, task, kept, len(kept) < len(own), sha256(content.encode()).hexdigest())


def evaluation_texts(config: EvalConfig) -> list[tuple[str, str, str]]:
    """Return the texts of all tasks; see `texts_of_task`."""
    return [text for name, task in config.tasks.items() for text in texts_of_task(name, task)]


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
    merged: dict[str, Example] = {}
    for number, row in enumerate(rows):
        example = _example(key, task, row, number)
        first = merged.setdefault(json.dumps(example.messages), example)
        if first is not example:
            first.references[:] = dict.fromkeys([*first.references, *example.references])
            first.texts.extend(example.texts)
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
    prompt, values = render(task.prompt, row, f"{key}.prompt")
    if not prompt:
        raise UserError(f"{key}.prompt: {row.origin} gives an empty prompt; delete the row or change the template")
    messages = [{"role": "user", "content": prompt}]
    if task.system is not None:
        messages.insert(0, {"role": "system", "content": task.system})
    identifier = row.fields.get("id")
    references = collect(task.references, row, f"{key}.references")
    return Example(
        str(number if identifier is None else identifier), messages, references, texts=[*values, *references]
    )


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
            found = read(SourceConfig(kind=SourceKind.files, path=task.path), key)
        case TaskKind.pydocs:
            from tometune.data import pydocs

            found = batches(pydocs.examples(task.topic or ""), f"pydocs {task.topic}")
    rows = [Row(fields, batch.where(index)) for batch in found for index, fields in enumerate(batch.checked_rows())]
    if not rows:
        raise UserError(f"{key}: {task.path or task.id or task.topic} has no examples; choose a source that has some")
    return rows


def render(template: str, row: Row, key: str) -> tuple[str, list[str]]:
    """Replace each `{field}` of a template by that field of the row; `{{` and `}}` are plain braces.

    Returns:
        The text without outer white space, and the values in it. A null value is empty, a list is joined by commas.

    Raises:
        UserError: the template is malformed or names a field that the row does not have.
    """
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise UserError(f"{key}: {error}; write {{{{ and }}}} for plain braces") from None
    text, values = "", []
    for literal, name, spec, conversion in parts:
        text += literal
        if spec or conversion or name == "":
            raise UserError(f"{key}: only plain fields are supported, no formats; e.g. {{input}}")
        if name:
            values.append(", ".join(reach(row.fields, name, f"{key}: {row.origin}")))
            text += values[-1]
    return text.strip(), values


def collect(paths: list[str], row: Row, key: str) -> list[str]:
    """Return the distinct, non-empty references of a row, in order.

    Raises:
        UserError: a path names no field, or all references are empty.
    """
    place = f"{key}: {row.origin}"
    found = [text.strip() for path in paths for text in reach(row.fields, path, place)]
    references = list(dict.fromkeys(text for text in found if text))
    if not references:
        raise UserError(f"{place} has no reference with any text; delete the row or name another field")
    return references


def reach(value: Any, path: str, place: str) -> Iterator[str]:
    """Yield every value at a dotted path as text; a list on the path contributes the values of each of its entries.

    In a list of `{role, content}` messages, a role selects the content of the first message of that role, as in
    `messages.assistant`. `place` is the config key and the row, for the error about an unknown field.
    """
    head, _, rest = path.partition(".")
    if isinstance(value, list) and path:
        if head in ROLES and all(isinstance(entry, dict) and "role" in entry for entry in value):
            turns = [turn for turn in value if turn["role"] == head][:1]
            yield from reach([turn.get("content") for turn in turns], rest, place)
        else:
            for entry in value:
                yield from reach(entry, path, place)
    elif path:
        fields = list(value) if isinstance(value, dict) else []
        if head not in fields:
            near = did_you_mean(head, fields)
            raise UserError(f"{place} has no field {head!r}{near} (fields: {', '.join(fields)})")
        yield from reach(value[head], rest, place)
    elif isinstance(value, list):
        for entry in value:
            yield from reach(entry, "", place)
    elif value is not None:
        yield str(value).encode("utf-8", "replace").decode()  # JSON can hold half a surrogate pair, UTF-8 cannot
