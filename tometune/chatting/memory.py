"""Keys and values of the last conversation, so that a new turn costs only its own tokens."""

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


class Memory:
    """The cache of one engine, for the conversation that it answered last.

    A cache is used again only up to a place where an earlier prompt began to be read. So a prompt that is answered
    again is read in the same portions as before, and the same seed gives the same answer bit for bit: in 16 bits, other
    portions round otherwise.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._ids: list[int] = []
        self._starts: list[int] = []
        self._cache: Any = None

    def reuse(self, ids: Sequence[int]) -> tuple[Any, int]:
        """Return a cache and how many tokens of a prompt it holds; at least one token is left to be read."""
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(self._ids, ids, strict=False)))
        whole = [len(self._ids)] if same == len(self._ids) else []
        start = max((place for place in [*self._starts, *whole] if place <= min(same, len(ids) - 1)), default=0)
        if not start or not self._shortened(start):
            self._cache, start = DynamicCache(config=self._model.config), 0
        self._starts = sorted({place for place in self._starts if place < start} | {start})
        self._ids = list(ids[:start])
        return self._cache, start

    def add(self, ids: Sequence[int]) -> None:
        """Note that the model has read these too."""
        self._ids += ids

    def forget(self) -> None:
        """Start from nothing the next time: the cache may not be what the tokens say."""
        self._ids, self._starts, self._cache = [], [], None

    def _shortened(self, length: int) -> bool:
        """Cut the cache to a length; False where its layers do not keep every token, and it is of no use."""
        if not all(type(layer) is DynamicLayer for layer in self._cache.layers):
            return False
        if length < len(self._ids):
            self._cache.crop(length - len(self._ids))  # negative: so many tokens less
        return True
