"""Words of any script for ROUGE, whose tokenizer keeps only a–z and 0–9."""

import re
import unicodedata
from functools import lru_cache

# Scripts written without spaces between words: each character counts as a word, with the marks on it.
UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "BOPOMOFO", "THAI", "LAO", "KHMER", "MYANMAR", "YI", "TAI")


def needs_unicode(text: str) -> bool:
    """Tell whether ROUGE's tokenizer drops letters of another script than Latin, or finds no word at all in a text."""
    if text.isascii():
        return False
    other = any(character.isalpha() and not _latin(character) for character in text)
    return other or not re.search("[a-z0-9]", text.lower())


def as_rouge_words(text: str) -> str:
    """Return a text in which ROUGE's tokenizer finds every word.

    Words of a–z and 0–9 stay, so they are stemmed as usual. Any other word becomes a number made of its code points,
    which the stemmer leaves alone. Text is normalised (NFKC) and in lower case first. In a text without letters and
    digits, each character is a word.
    """
    words: list[str] = []
    extends = False  # whether the next letter belongs to the last word
    for character in unicodedata.normalize("NFKC", text).lower():
        kind = unicodedata.category(character)[0]
        if kind == "M" and words:
            words[-1] += character
        elif kind in "LN":
            alone = not character.isascii() and _unspaced(character)
            if extends and not alone:
                words[-1] += character
            else:
                words.append(character)
            extends = not alone
        else:
            extends = False
    words = words or [character for character in text if not character.isspace()]
    numbers = ("".join(f"{ord(character):07}" for character in word) for word in words)
    return " ".join(
        word if word.isascii() and word.isalnum() else number for word, number in zip(words, numbers, strict=True)
    )


@lru_cache(4096)
def _latin(character: str) -> bool:
    return unicodedata.name(character, "").startswith(("LATIN", "FEMININE", "MASCULINE", "FULLWIDTH LATIN"))


@lru_cache(4096)
def _unspaced(character: str) -> bool:
    return unicodedata.name(character, "").startswith(UNSPACED)
