"""Build the mix and its tokens, show what is in it, load no model."""

from pathlib import Path
from typing import TYPE_CHECKING

from tometune.common.errors import UserError
from tometune.common.files import disk_errors, write_text
from tometune.common.imports import quick_imports
from tometune.config.app import verb
from tometune.config.compare import compared
from tometune.config.root import Config

if TYPE_CHECKING:
    from rich.console import Console

    from tometune.data.contamination.overlaps import MixOverlaps
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
        from tometune.data.tokens import tokenise
        from tometune.models.tokenizer import load_tokenizer
        from tometune.reporting.datacard import console as told
        from tometune.runs.inputs import cache_folder, mix_of

    other = compared(config) if config.compare is not None else None
    cache = cache_folder(config)
    mix = mix_of(config, cache)
    beside = mix_of(other, cache) if other is not None else None
    if beside is not None and beside.digest == mix.digest:
        raise UserError(
            f"compare={config.compare}: has the very rows of {mix.name} (digest {mix.digest}); name another"
        )
    tokenizer = load_tokenizer(config.model, cache)
    tokens = tokenise(mix, tokenizer, config.trainer.max_length, cache)
    console = Console(highlight=False)
    console.print(preview.summary(mix, tokens, config.trainer.max_length))
    found, missing = _contamination(config, mix, cache)
    told.print_contamination(console, found, missing)
    _row(console, config, tokens, tokenizer)
    values = profile(mix, tokens)
    folder = _write_card(config, mix, values, found, missing)
    if beside is not None:
        tokens_beside = tokenise(beside, tokenizer, config.trainer.max_length, cache)
        _compare(console, config, folder, (mix, beside), (values, profile(beside, tokens_beside)))
    console.print(f"\ndata card: {folder / 'mix.html'}, and as text {folder / 'mix.md'}", soft_wrap=True, markup=False)
    console.print(f"kept in {cache}; train reads it from there", soft_wrap=True, markup=False)


def _row(console: "Console", config: Config, tokens: "Tokens", tokenizer: object) -> None:
    """Print a row as the model sees it."""
    from tometune.data import preview

    number = config.seed % len(tokens.dataset)
    marks = ("", "") if console.color_system else preview.MARKS
    where = "in colour" if console.color_system else f"between {' and '.join(marks)}"
    again = f"another: seed={number + 1} seeds.data={config.seeds.data}"
    console.print(f"\nrow {number} as the model sees it, trained tokens {where} ({again}):\n", markup=False)
    console.print(preview.row(tokens, tokenizer, number, marks), soft_wrap=True)


def _contamination(config: Config, mix: "Mix", cache: Path) -> tuple["MixOverlaps | None", dict[str, str]]:
    """Return what the mix shares with the evaluation, and why a task could not be looked at."""
    from tometune.runs.inputs import contamination_of, held_out_where_reached

    held_out, missing = held_out_where_reached(config)
    return contamination_of(config, mix, held_out, cache) if held_out.texts else None, missing


def _write_card(
    config: Config, mix: "Mix", values: "Profile", found: "MixOverlaps | None", missing: dict[str, str]
) -> Path:
    """Write mix.html and mix.md; returns their folder."""
    from tometune.data.profile import samples
    from tometune.reporting.datacard import content
    from tometune.reporting.datacard.markdown import card_markdown
    from tometune.reporting.datacard.page import card_page

    shared = content.contamination(found, missing, str(config.data.contamination))
    card = content.card(mix, values, shared, samples(mix))
    folder = Path(config.paths.outputs).expanduser() / CARDS / f"{mix.name}-s{mix.seed}-{mix.digest[:8]}"
    _write(folder, "mix.html", card_page(card, values, config.trainer.max_length))
    _write(folder, "mix.md", card_markdown(card))
    return folder


def _compare(
    console: "Console", config: Config, folder: Path, mixes: tuple["Mix", "Mix"], pair: tuple["Profile", "Profile"]
) -> None:
    """Print the difference of two mixes and write it beside the first one's card."""
    from tometune.data.difference import between
    from tometune.reporting.datacard import console as told
    from tometune.reporting.datacard.markdown import compare_markdown
    from tometune.reporting.datacard.page import compare_page

    first, second = mixes
    names = (first.name, second.name if second.name != first.name else f"{second.name} ({config.compare})")
    difference = between(*pair, names)
    difference |= {"digests": [mix.digest for mix in mixes], "seeds": [mix.seed for mix in mixes]}
    name = f"compare-{second.name}-s{second.seed}-{second.digest[:8]}"
    _write(folder, f"{name}.html", compare_page(difference, pair))
    _write(folder, f"{name}.md", compare_markdown(difference))
    told.print_difference(console, difference)
    console.print(f"\nthe difference as a page: {folder / f'{name}.html'}", soft_wrap=True, markup=False)


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
