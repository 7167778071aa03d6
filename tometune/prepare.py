"""Build the mix and its tokens, show what is in it, load no model."""

from functools import partial

from tometune.config.export import ONLY_EXPORT
from tometune.config.main import verb
from tometune.config.root import Config
from tometune.imports import quick_imports


@partial(verb, ignores=ONLY_EXPORT | {"run": "only evaluate reads it; prepare builds the mix of its own config"})
def main(config: Config) -> None:
    """Build what `train` will train on and print its numbers and one row of it."""
    from rich.console import Console

    with quick_imports():
        from tometune.data import preview
        from tometune.data.mix import build_mix
        from tometune.data.tokens import tokenise
        from tometune.inputs import cache_folder
        from tometune.models.tokenizer import load_tokenizer

    cache = cache_folder(config)
    mix = build_mix(config.data, config.seeds.data, cache)
    tokenizer = load_tokenizer(config.model, cache)
    tokens = tokenise(mix, tokenizer, config.trainer.max_length, cache)
    console = Console(highlight=False)
    console.print(preview.summary(mix, tokens, config.trainer.max_length))
    number = config.seed % len(tokens.dataset)
    marks = ("", "") if console.color_system else preview.MARKS
    where = "in colour" if console.color_system else f"between {' and '.join(marks)}"
    again = f"another: seed={number + 1} seeds.data={config.seeds.data}"
    console.print(f"\nrow {number} as the model sees it, trained tokens {where} ({again}):\n", markup=False)
    console.print(preview.row(tokens, tokenizer, number, marks), soft_wrap=True)
    console.print(f"\nkept in {cache}; train reads it from there", soft_wrap=True, markup=False)


if __name__ == "__main__":
    main()
