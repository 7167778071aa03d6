"""Build and tokenise the mix and show what is in it; a model is loaded only if it ranks the pool.

tometune prepare data=mix_200k  # build the mix and its data card
tometune prepare data=mine data.path=mine.jsonl
tometune prepare data=mix_200k data.filters.refusals=true
tometune prepare data=mix_300k data.contamination=drop  # not in the test sets
"""

import logging
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tometune.common.errors import UserError
from tometune.common.files import disk_errors, write_text
from tometune.common.process import quick_imports
from tometune.config.app import verb
from tometune.config.root import Config
from tometune.sweep import arms  # noqa: F401 -- its resolver names the arms of a sweep over sources

if TYPE_CHECKING:
    from rich.console import Console

    from tometune.data.tokens import Tokens
    from tometune.runs.inputs import RunInputs

log = logging.getLogger(__name__)


@verb
def main(config: Config) -> None:
    """Build the data that `train` will use, print its numbers and one of its rows, and write its data card."""
    from rich.console import Console

    with quick_imports():
        from tometune.reporting.data_card import describe_overlaps
        from tometune.runs.inputs import RunInputs

    inputs = RunInputs.resolve(config)
    console = Console(highlight=False)
    overlaps = describe_overlaps(*inputs.contamination(), str(config.data.contamination))
    parts = {"data card": partial(_card, console, inputs, overlaps), "parameters": partial(_capacity, console, inputs)}
    for name, show in parts.items():
        try:
            show()
        except UserError:
            raise
        except Exception as error:  # the mix and its tokens are cached, and nothing after that may fail the command
            log.warning("no %s: %s: %s", name, type(error).__name__, error)
    _row(console, config, inputs.tokens, inputs.tokenizer)
    console.print(f"\ncached in {inputs.cache}; train will reuse it", soft_wrap=True, markup=False)


def _capacity(console: "Console", inputs: "RunInputs") -> None:
    """Print how many tokens of the mix are trained with how many parameters."""
    from tometune.models.source import locate, parameters_to_train
    from tometune.reporting.controls import capacity_line

    config, counts = inputs.config, inputs.tokens.counts
    parameters = parameters_to_train(locate(config.model, inputs.cache, weights=False), config.lora)
    line = capacity_line(counts.rows, counts.trainable_tokens, parameters, config.lora.enabled)
    console.print(f"\n{line} in one epoch", soft_wrap=True)


def _row(console: "Console", config: Config, tokens: "Tokens", tokenizer: object) -> None:
    """Print a row as the model sees it."""
    from tometune.data import preview

    number = config.seed % len(tokens.dataset)
    marks = ("", "") if console.color_system else preview.MARKS
    where = "in colour" if console.color_system else f"between {' and '.join(marks)}"
    again = f"another: seed={number + 1} seeds.data={config.seeds.data}"
    console.print(f"\nrow {number} as the model sees it, trained tokens {where} ({again}):\n", markup=False)
    console.print(preview.row(tokens, tokenizer, number, marks), soft_wrap=True)


def _card(console: "Console", inputs: "RunInputs", overlaps: dict[str, Any]) -> None:
    """Print the numbers of the data card and write it as mix.html and mix.md.

    Raises:
        UserError: the folder cannot be created or written to.
    """
    from rich.markdown import Markdown

    from tometune.data.preview import profile, samples
    from tometune.reporting.data_card import card, card_markdown, card_page
    from tometune.reporting.html import CARDS, link_runs
    from tometune.runs.stored import earlier_runs

    mix, tokens, max_length = inputs.mix, inputs.tokens, inputs.config.trainer.max_length
    folder = Path(inputs.config.paths.outputs).expanduser() / CARDS / f"{mix.name}-s{mix.seed}-{mix.digest[:8]}"
    values = profile(mix, tokens, inputs.cache)
    content = card(mix, values, tokens.counts, samples(mix), overlaps, max_length)
    console.print(Markdown(card_markdown(content, rows=False)))
    try:
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            write_text(folder / "mix.html", card_page(content, values, max_length, inputs.config.model.name))
            write_text(folder / "mix.md", card_markdown(content))
            link_runs(folder / "mix.html", earlier_runs(inputs.config.paths))
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written ({error.strerror}); set paths.outputs to a folder that can"
        ) from error
    files = f"{folder / 'mix.html'}, and as Markdown {folder / 'mix.md'}"
    console.print(f"\ndata card: {files}", soft_wrap=True, markup=False)


if __name__ == "__main__":
    main()
