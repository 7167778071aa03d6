"""How fast the search for evaluation texts is, beside two other ways to do it.

    python scripts/bench_contamination.py --rows base.parquet --texts eval1.jsonl eval2.jsonl

Without arguments it looks through the conversations of the embedded documentation for its tasks. Each way finds the
same rows, or the script fails. CPU seconds are of all threads; on a machine that others use they are what to go by.
"""

import argparse
import json
import string
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tometune.config.data import SourceConfig, SourceKind
from tometune.config.eval import TaskConfig, TaskKind
from tometune.data.contamination.index import RUN, HeldOutText, Index, index_of
from tometune.data.contamination.scan import scan
from tometune.data.contamination.words import joined_turns
from tometune.data.standardise import standardise
from tometune.evaluation.tasks import texts_of_task

PUNCTUATION = str.maketrans("", "", string.punctuation)

Runs = set[tuple[str, ...]]


def plain(messages: pa.ChunkedArray, runs: Runs) -> set[int]:
    """The way of lm-evaluation-harness' janitor: Python, a set of tuples; here runs are looked up by their start."""
    starts = {run[:3] for run in runs}
    found = set()
    for number, conversation in enumerate(messages):
        text = " ".join(turn["content"] for turn in conversation.as_py())
        words = text.lower().translate(PUNCTUATION).split()
        for place in range(len(words) - RUN + 1):
            if tuple(words[place : place + 3]) in starts and tuple(words[place : place + RUN]) in runs:
                found.add(number)
    return found


def arrow(messages: pa.ChunkedArray, runs: Runs) -> set[int]:
    """Arrow's kernels: lower case, a regular expression for punctuation, words by number in a dictionary of theirs."""
    known = pa.array(sorted({word for run in runs for word in run}))
    numbers = {word: number for number, word in enumerate(known.to_pylist())}
    base = np.uint64(0x9E3779B97F4A7C15)
    wanted = np.unique(np.array([_hash([numbers[word] for word in run], int(base)) for run in runs], dtype=np.uint64))
    found, start = set(), 0
    for chunk in messages.chunks:
        texts = pc.utf8_lower(joined_turns(chunk))
        lists = pc.utf8_split_whitespace(pc.replace_substring_regex(texts, "[[:punct:]]+", ""))
        ids = pc.fill_null(pc.index_in(lists.flatten(), value_set=known), -1).to_numpy()
        rows = np.repeat(np.arange(len(chunk)), pc.list_value_length(lists).to_numpy(zero_copy_only=False))
        count = max(len(ids) - RUN + 1, 0)
        hashes, good = np.zeros(count, dtype=np.uint64), np.ones(count, dtype=bool)
        for step in range(RUN):
            part = ids[step : step + count]
            hashes = hashes * base + (part.astype(np.uint64) + np.uint64(1))
            good &= (part >= 0) & (rows[step : step + count] == rows[:count])
        candidates = np.flatnonzero(good)
        hits = candidates[np.isin(hashes[candidates], wanted)]
        found |= set((rows[hits] + start).tolist())
        start += len(chunk)
    return found


def _hash(numbers: list[int], base: int) -> int:
    """Return the hash of a run of word numbers."""
    value = 0
    for number in numbers:
        value = (value * base + number + 1) % 2**64
    return value


def ours(messages: pa.ChunkedArray, index: Index) -> set[int]:
    """The package's own: bytes in NumPy, threads."""
    return set(scan(index, messages).rows.tolist())


def timed(name: str, count: int, search: Callable[[], set[int]]) -> set[int]:
    """Run a search and print what it took."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = search()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(f"| {name} | {wall:.1f} | {cpu:.1f} | {count / wall:,.0f} | {count / cpu:,.0f} | {len(found)} |", flush=True)
    return found


def main() -> None:
    """Time each way over the same rows and texts."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=Path, help="conversations; default: the embedded documentation")
    parser.add_argument("--texts", type=Path, nargs="+", default=[], help="tasks, JSONL of input, references, context")
    parser.add_argument("--slow", type=int, default=20_000, help="rows that the plain way is given")
    arguments = parser.parse_args()
    source = SourceConfig(kind=SourceKind.files, path=str(arguments.rows))
    if arguments.rows is None:
        source = SourceConfig(kind=SourceKind.pydocs)
        tasks = {topic: TaskConfig(kind=TaskKind.pydocs, topic=topic, prompt="{input}") for topic in ("summarisation",)}
        texts = [HeldOutText(*text) for name, task in tasks.items() for text in texts_of_task(name, task)]
    else:
        texts = [text for path in arguments.texts for text in read(path)]
    with TemporaryDirectory() as folder:
        table = standardise(source, "--rows", Path(folder)).rows.data
        messages = table.column("messages")
        start = time.perf_counter()
        index = index_of(texts)
        print(f"{len(texts):,} texts, {len(index.run_words):,} runs, indexed in {time.perf_counter() - start:.1f} s\n")
        words = [text.text.lower().translate(PUNCTUATION).split() for text in texts]
        runs = {tuple(each[start : start + RUN]) for each in words for start in range(len(each) - RUN + 1)}
        print("| way | seconds | CPU seconds | rows/s | rows/CPU second | rows found |\n|---|---:|---:|---:|---:|---:|")
        some = messages.slice(0, arguments.slow)
        slow = timed(f"Python, {len(some):,} rows", len(some), lambda: plain(some, runs))
        found = timed("Arrow kernels", len(messages), lambda: arrow(messages, runs))
        mine = timed("bytes in NumPy (chosen)", len(messages), lambda: ours(messages, index))
        again = timed("the same, once more", len(messages), lambda: ours(messages, index))
        assert mine == again
        missed = (slow | found) - mine
        assert not missed, f"not found by ours: {sorted(missed)[:5]}"


def read(path: Path) -> list[HeldOutText]:
    """Read a task of JSONL."""
    texts = []
    for number, line in enumerate(path.read_text(encoding="utf-8").rstrip("\n").split("\n")):
        example = json.loads(line)
        fields = [example["input"], example.get("context") or "", *example["references"]]
        texts += [HeldOutText(path.stem, str(example.get("id", number)), text) for text in fields]
    return texts


if __name__ == "__main__":
    main()
