"""Words of any script for ROUGE, whose tokenizer keeps only a–z and 0–9."""

import unicodedata
from functools import lru_cache

# Scripts written without spaces between words: each character counts as a word, with the marks on it.
UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "BOPOMOFO", "THAI", "LAO", "KHMER", "MYANMAR", "YI", "TAI")


def needs_unicode(text: str) -> bool:
    """Tell whether a text has letters of a script other than Latin, which ROUGE's tokenizer drops."""
    return not text.isascii() and any(character.isalpha() and not _latin(character) for character in text)


def as_rouge_words(text: str) -> str:
    """Return a text in which ROUGE's tokenizer finds every word.

    Words of a–z and 0–9 stay, so they are stemmed as usual. Any other word becomes a number made of its code points,
    which the stemmer leaves alone. Text is normalised (NFKC) and in lower case first.
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
    return " ".join(word if word.isascii() else "".join(f"{ord(character):07}" for character in word) for word in words)


@lru_cache(4096)
def _latin(character: str) -> bool:
    return unicodedata.name(character, "").startswith(("LATIN", "FEMININE", "MASCULINE", "FULLWIDTH LATIN"))


@lru_cache(4096)
def _unspaced(character: str) -> bool:
    return unicodedata.name(character, "").startswith(UNSPACED)
