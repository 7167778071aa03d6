"""Build and tokenise the mix and show what is in it; no model is loaded."""

from pathlib import Path
from typing import TYPE_CHECKING

from tometune.common.errors import UserError
from tometune.common.files import disk_errors, write_text
from tometune.common.imports import quick_imports
from tometune.config.app import verb
from tometune.config.root import Config

if TYPE_CHECKING:
    from rich.console import Console

    from tometune.data.contamination import MixOverlaps
    from tometune.data.mix import Mix
    from tometune.data.profile import Profile
    from tometune.data.tokens import Tokens

CARDS = "mixes"
"""Folder of the data cards, below `paths.outputs`: where browsers may read, which a hidden cache often is not."""


@verb
def main(config: Config) -> None:
    """Build what `train` will train on, print its numbers and one row of it, and write its data card."""
    from rich.console import Console

    with quick_imports():
        from tometune.data import preview
        from tometune.data.profile import profile
        from tometune.reporting.data_card import print_contamination
        from tometune.runs.inputs import RunInputs

    inputs = RunInputs.resolve(config)
    mix, tokens = inputs.mix, inputs.tokens
    console = Console(highlight=False)
    console.print(preview.summary(mix, tokens, config.trainer.max_length))
    found, missing = inputs.contamination()
    print_contamination(console, found, missing)
    _row(console, config, tokens, inputs.tokenizer)
    values = profile(mix, tokens)
    folder = _write_card(config, mix, values, found, missing)
    console.print(f"\ndata card: {folder / 'mix.html'}, and as text {folder / 'mix.md'}", soft_wrap=True, markup=False)
    console.print(f"cached in {inputs.cache}; train will reuse it", soft_wrap=True, markup=False)


def _row(console: "Console", config: Config, tokens: "Tokens", tokenizer: object) -> None:
    """Print a row as the model sees it."""
    from tometune.data import preview

    number = config.seed % len(tokens.dataset)
    marks = ("", "") if console.color_system else preview.MARKS
    where = "in colour" if console.color_system else f"between {' and '.join(marks)}"
    again = f"another: seed={number + 1} seeds.data={config.seeds.data}"
    console.print(f"\nrow {number} as the model sees it, trained tokens {where} ({again}):\n", markup=False)
    console.print(preview.row(tokens, tokenizer, number, marks), soft_wrap=True)


def _write_card(
    config: Config, mix: "Mix", values: "Profile", found: "MixOverlaps | None", missing: dict[str, str]
) -> Path:
    """Write mix.html and mix.md; returns their folder."""
    from tometune.data.profile import samples
    from tometune.reporting import data_card
    from tometune.reporting.data_card import card_markdown, card_page

    shared = data_card.contamination(found, missing, str(config.data.contamination))
    card = data_card.card(mix, values, shared, samples(mix))
    folder = Path(config.paths.outputs).expanduser() / CARDS / f"{mix.name}-s{mix.seed}-{mix.digest[:8]}"
    _write(folder, "mix.html", card_page(card, values, config.trainer.max_length))
    _write(folder, "mix.md", card_markdown(card))
    return folder


def _write(folder: Path, name: str, text: str) -> None:
    """Write a file of a card.

    Raises:
        UserError: the folder cannot be made or written.
    """
    try:
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            write_text(folder / name, text)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written ({error.strerror}); set paths.outputs to a folder that can"
        ) from error


if __name__ == "__main__":
    main()
