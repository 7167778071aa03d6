"""The texts that training data must not hold: every field of every example that a task shows a model or scores by.

Fields, not prompts: the words of a prompt template are in all of them and in much training data too. All examples of a
task count, whatever the limits, so that trying something out with few of them draws the same mix.
"""

from collections.abc import Iterator
from dataclasses import replace
from string import Formatter

from tometune.config.eval import EvalConfig, TaskConfig, TaskKind
from tometune.evaluation.sources import Row, read_rows
from tometune.evaluation.tasks import load_task
from tometune.evaluation.templates import collect, reach, render

Text = tuple[str, str, str]
"""Task, example, text."""


def held_out_texts(config: EvalConfig) -> list[Text]:
    """Return the texts of all tasks.

    Raises:
        UserError: see `held_out_of`.
    """
    return [text for name, task in config.tasks.items() for text in held_out_of(name, task)]


def held_out_of(name: str, task: TaskConfig) -> list[Text]:
    """Return the texts of one task.

    Raises:
        UserError: the source is missing or broken, a field is unknown, or an example has no reference.
    """
    key = f"eval.tasks.{name}"
    rows = read_rows(key, task)
    identifiers = [str(row.fields.get("id", number)) for number, row in enumerate(rows)]
    wanted = set(identifiers)
    if task.kind is TaskKind.pydocs:  # the rows of the other part, validation or test, are another task's
        wanted = {example.id for example in load_task(name, replace(task, limit=None)).examples}
    return [
        (name, identifier, text)
        for identifier, row in zip(identifiers, rows, strict=True)
        if identifier in wanted
        for text in _texts(key, task, row)
    ]


def _texts(key: str, task: TaskConfig, row: Row) -> Iterator[str]:
    """Yield the fields of a row that its prompt shows, and its references."""
    render(task.prompt, row.fields, f"{key}.prompt", row.origin)  # tells what is wrong with the template or the row
    for _, name, _, _ in Formatter().parse(task.prompt):
        if name:
            yield ", ".join(reach(row.fields, name))
    yield from collect(task.references, row.fields, f"{key}.references", row.origin)
