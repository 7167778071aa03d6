"""What a pass as a graph has room for, and the parts of a batch that holds more."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch

from tometune.data.labels import IGNORE


@dataclass(frozen=True)
class Fits:
    """How much one pass has room for, beside its tokens."""

    conversations: int
    trained: int
    """Tokens with a label; not fewer than a conversation can have."""


@dataclass(frozen=True)
class Part:
    """Whole conversations of a batch that lie end to end."""

    tokens: slice
    ends: slice
    """Of the batch's cumulative lengths, [conversations + 1]."""


def parts(lengths: Sequence[int], labels: torch.Tensor, fits: Fits) -> list[Part]:
    """Cut a batch between conversations, so that each part fits; nearly always there is one.

    Args:
        lengths: of the conversations.
        labels: of all tokens, [tokens], on the CPU.
        fits: what a part may hold.
    """
    starts = [0, *accumulate(lengths)]
    trained = [0, *torch.cumsum(labels != IGNORE, 0).tolist()]
    begins = [0]
    for last in range(1, len(lengths)):
        begin = begins[-1]
        more = trained[starts[last + 1]] - trained[starts[begin]]
        if last + 1 - begin > fits.conversations or more > fits.trained:
            begins.append(last)
    return [
        Part(slice(starts[begin], starts[end]), slice(begin, end + 1))
        for begin, end in zip(begins, [*begins[1:], len(lengths)], strict=True)
    ]
