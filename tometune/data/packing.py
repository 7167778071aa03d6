"""Packing: several conversations in one block of `max_length` tokens, so that little or nothing is padding."""

from datasets import Dataset, disable_progress_bars, enable_progress_bars, is_progress_bar_enabled
from trl import pack_dataset


def pack(dataset: Dataset, max_length: int) -> Dataset:
    """Pack rows of at most `max_length` tokens by best fit, longest first (arXiv:2404.10830); no row is split.

    Returns:
        The blocks with a third column, `seq_lengths`: the lengths of the rows in each block. The collator turns them
        into position ids that restart with each row, by which attention keeps the rows separate.
    """
    shown = is_progress_bar_enabled()
    disable_progress_bars()  # it takes seconds, and the log is for lines
    try:
        return pack_dataset(dataset, max_length, strategy="bfd", map_kwargs={"keep_in_memory": True})
    finally:
        if shown:
            enable_progress_bars()
