"""Encoding of rendered conversations: token ids, and the places that are trained on.

The whole text is encoded at once, as it would be for generation. Where that would join a header with the text after it
into one token, or make a control token of a text that spells one, a row is encoded in pieces.
"""

from itertools import pairwise
from typing import Any

from tokenizers import Tokenizer

from tometune.data.template import Rendered, Template

Encoded = tuple[list[int], list[tuple[int, int]]]
"""Token ids, and the [start, end) of the tokens that are trained on."""


def settled(backend: Any) -> Any:
    """Return the backend without what calls leave on it: cutting and padding. transformers sets both on each call."""
    backend.no_truncation()
    backend.no_padding()
    return backend


class Encoder:
    """Two copies of a tokenizer's backend: one for control tokens, one for which there are none.

    Copies, since a switch of the one tokenizer would also act on the batch that another thread is encoding.
    """

    def __init__(self, template: Template) -> None:
        self.template = template
        backend = settled(template.tokenizer.backend_tokenizer).to_str()
        self._backend, self._plain = Tokenizer.from_str(backend), Tokenizer.from_str(backend)
        self._backend.encode_special_tokens = False
        self._plain.encode_special_tokens = True
        self._controls = {number for number, token in self._backend.get_added_tokens_decoder().items() if token.special}

    def encode(self, rendered: list[Rendered]) -> list[Encoded]:
        """Return token ids and trained places, uncut."""
        return self.placed(rendered, self.encodings(rendered))

    def encodings(self, rendered: list[Rendered]) -> list[Any]:
        """Return the encodings of the texts as they are, on every core."""
        encodings: list[Any] = self._backend.encode_batch([row.text for row in rendered], add_special_tokens=False)
        return encodings

    def placed(self, rendered: list[Rendered], encodings: list[Any]) -> list[Encoded]:
        """Return the token ids of encodings, and the tokens that are trained on."""
        result = []
        for row, encoding in zip(rendered, encodings, strict=True):
            places = None if row.stand_ins else _places(encoding, row)
            result.append(self._apart(row) if places is None else (encoding.ids, places))
        return result

    def _apart(self, row: Rendered) -> Encoded:
        """Encode control tokens and the texts between them one by one; what stands in for others stays text."""
        ids: list[int] = []
        places: list[tuple[int, int]] = []
        controls = [match.span() for match in self.template.special.finditer(row.text)]
        edges = sorted({0, len(row.text), *(edge for span in [*row.spans, *controls] for edge in span)})
        starts = {start for start, _ in controls}
        reached = {0: 0}
        for start, end in pairwise(edges):
            backend = self._backend if start in starts else self._plain
            ids += backend.encode(row.spelt(start, end), add_special_tokens=False).ids
            reached[end] = len(ids)
        places = [(reached[start], reached[end]) for start, end in row.spans]
        return ids, places

    def decode(self, ids: list[int]) -> str:
        """Return the text of tokens, control tokens spelt out."""
        text: str = self._backend.decode(ids, skip_special_tokens=False)
        return text

    def round_trip(self, text: str) -> str:
        """Return what is left of a text that was encoded and decoded."""
        return self.decode(self._plain.encode(text, add_special_tokens=False).ids)

    def controls(self, ids: list[int]) -> int:
        """Count the control tokens."""
        return sum(number in self._controls for number in ids)


def _places(encoding: Any, row: Rendered) -> list[tuple[int, int]] | None:
    """Return the tokens of the character spans; None if a span does not begin and end where a token does."""
    places = []
    for start, end in row.spans:
        first, last = encoding.char_to_token(start), encoding.char_to_token(end - 1)
        if first is None or last is None or encoding.token_to_chars(first)[0] != start:
            return None
        while last + 1 < len(encoding) and encoding.token_to_chars(last + 1) == encoding.token_to_chars(last):
            last += 1  # one character of several byte tokens
        stop = encoding.token_to_chars(last)[1]
        if stop < end or row.text[end:stop].strip():  # some end-of-turn tokens swallow the white space after them
            return None
        places.append((first, last + 1))
    return places
