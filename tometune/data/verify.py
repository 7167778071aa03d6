"""A check of labels: what is trained on decodes to the assistant's texts, each with its end of turn."""

from tometune.data.encoder import Encoded, Encoder
from tometune.data.template import Messages, Rendered, Template


def verify(encoder: Encoder, messages: Messages, row: Rendered, encoded: Encoded, number: int) -> None:
    """Check that the trained tokens decode to the assistant's texts, each with its end of turn and nothing else.

    Raises:
        RuntimeError: they do not.
    """
    ids, places = encoded
    wanted = [message["content"].strip() for message in messages if message["role"] == "assistant"]
    if not len(wanted) == len(places) == len(row.spans):
        raise RuntimeError(f"row {number}: {len(places)} places are trained on, the assistant has {len(wanted)} turns")
    for text, (start, end), span in zip(wanted, places, row.spans, strict=True):
        decoded, shown = encoder.decode(ids[start:end]), row.spelt(*span)
        kept = encoder.round_trip(shown)
        # A tokenizer that normalises, or marks the starts of words, gives back another text; most give back the same.
        same = decoded == shown if kept == shown else decoded.strip() == kept.strip()
        if not (same and _is_answer(encoder.template, shown, text) and encoder.controls(ids[start:end]) <= 1):
            raise RuntimeError(f"row {number}: the labels decode to {decoded!r}, not to the assistant's {text!r}")


def _is_answer(template: Template, shown: str, text: str) -> bool:
    """Tell whether what is trained on is the text and, if the template ends answers, one token that ends it."""
    body = shown.strip()
    ending = body[len(text) :].strip()
    return body.startswith(text) and bool(template.special.fullmatch(ending) if template.ends else not ending)
