"""Packs: rows joined into blocks of `max_length` tokens, so that no token of a batch is padding.

A block keeps the lengths of its rows in `seq_lengths`; the collator turns them into position ids that start again with
each row, by which attention (sdpa, eager, flash) keeps the rows of a block apart.
"""

from datasets import Dataset, disable_progress_bars, enable_progress_bars, is_progress_bar_enabled
from trl import pack_dataset


def pack(dataset: Dataset, max_length: int) -> Dataset:
    """Join rows by best fit, the longest first (Ding et al. 2024, arXiv:2404.10830); no row is split.

    Args:
        dataset: columns `input_ids` and `labels`, rows of at most `max_length` tokens.
        max_length: tokens of a block.

    Returns:
        The blocks, with `seq_lengths` beside the two columns.
    """
    shown = is_progress_bar_enabled()
    disable_progress_bars()  # seconds at most, and the log is for lines
    try:
        return pack_dataset(dataset, max_length, strategy="bfd", map_kwargs={"keep_in_memory": True})
    finally:
        if shown:
            enable_progress_bars()
