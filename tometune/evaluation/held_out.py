"""The texts that training data must not hold: every field of every example that a task shows a model or scores by.

Fields, not prompts: the words of a prompt template are in all of them and in much training data too. All examples of a
task count, whatever the limits, so that trying something out with few of them draws the same mix.
"""

import json
from collections.abc import Iterator
from string import Formatter

from tometune.config.eval import EvalConfig, TaskConfig
from tometune.evaluation.sources import Row, read_rows
from tometune.evaluation.tasks import examples_of, rendered
from tometune.evaluation.templates import collect, reach

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
        UserError: the source is missing or broken, a field is unknown, an example has no reference, or an id is twice.
    """
    key = f"eval.tasks.{name}"
    rows = read_rows(key, task)
    examples, order = examples_of(key, task, rows)
    owner = {json.dumps(example.messages): example.id for example in examples}
    wanted = {examples[number].id for number in order}
    found = []
    for number, row in enumerate(rows):
        example = owner[json.dumps(rendered(key, task, row, number).messages)]  # rows of one prompt are one example
        found += [(name, example, text) for text in _texts(key, task, row)] if example in wanted else []
    return found


def _texts(key: str, task: TaskConfig, row: Row) -> Iterator[str]:
    """Yield the fields of a row that its prompt shows, and its references."""
    for _, name, _, _ in Formatter().parse(task.prompt):
        if name:
            yield ", ".join(reach(row.fields, name))
    yield from collect(task.references, row.fields, f"{key}.references", row.origin)
