"""Measure how fast rows are searched for evaluation texts, compared with lm-evaluation-harness' janitor.

    python scripts/bench_contamination.py --rows base.parquet --texts eval1.jsonl eval2.jsonl

The script fails if the janitor finds a row that the package does not. CPU seconds are summed over all processes; they
are the better measure on a shared machine.
"""

import argparse
import json
import os
import string
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from tometune.config.data import SourceConfig, SourceKind
from tometune.data.contamination import LENGTH, EvaluationTexts, search
from tometune.data.standardise import Standardised, standardise

PUNCTUATION = str.maketrans("", "", string.punctuation)


def plain(source: Standardised, texts: list[tuple[str, str, str]], count: int) -> set[int]:
    """Return the rows, of the first `count`, that share a sequence: a set of tuples, looked up by their start."""
    evaluation = [text.lower().translate(PUNCTUATION).split() for _, _, text in texts]
    sequences = {tuple(words[start:][:LENGTH]) for words in evaluation for start in range(len(words) - LENGTH + 1)}
    starts = {sequence[:3] for sequence in sequences}
    found = set()
    for number, turns in enumerate(source.rows[:count]["messages"]):
        words = " ".join(turn["content"] for turn in turns).lower().translate(PUNCTUATION).split()
        for place in range(len(words) - LENGTH + 1):
            if tuple(words[place : place + 3]) in starts and tuple(words[place : place + LENGTH]) in sequences:
                found.add(number)
    return found


def timed(name: str, count: int, find: Callable[[], set[int]]) -> set[int]:
    """Run a search and print a row of the table."""
    wall, before = time.perf_counter(), os.times()
    found = find()
    wall, after = time.perf_counter() - wall, os.times()
    cpu = sum(after[:4]) - sum(before[:4])
    print(f"| {name} | {wall:.1f} | {cpu:.1f} | {count / wall:,.0f} | {count / cpu:,.0f} | {len(found)} |", flush=True)
    return found


def read(path: Path) -> list[tuple[str, str, str]]:
    """Read a task of JSONL."""
    texts = []
    for number, line in enumerate(path.read_text(encoding="utf-8").rstrip("\n").split("\n")):
        example = json.loads(line)
        fields = [example["input"], example.get("context") or "", *example["references"]]
        texts += [(path.stem, str(example.get("id", number)), text) for text in fields]
    return texts


def main() -> None:
    """Time both ways over the same rows and texts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=Path, required=True, help="conversations")
    parser.add_argument("--texts", type=Path, nargs="+", required=True, help="JSONL of input, references, context")
    parser.add_argument("--slow", type=int, default=20_000, help="rows for the janitor")
    arguments = parser.parse_args()
    with TemporaryDirectory() as folder:
        source = standardise(SourceConfig(kind=SourceKind.files, path=str(arguments.rows)), "--rows", Path(folder))
        texts = [text for path in arguments.texts for text in read(path)]
        wanted = EvaluationTexts(texts)
        count, some = len(source.rows), min(arguments.slow, len(source.rows))
        print(f"{len(texts):,} texts, {count:,} rows, load {os.getloadavg()[0]:.1f}\n")
        print("| way | seconds | CPU seconds | rows/s | rows/CPU second | rows found |\n|---|---:|---:|---:|---:|---:|")
        slow = timed(f"plain Python, {some:,} rows", some, lambda: plain(source, texts, some))
        found = timed("the package", count, lambda: {hit[0] for hit in search(source, wanted, Path(folder))})
        assert slow <= found, f"not found by the package: {sorted(slow - found)[:5]}"


if __name__ == "__main__":
    main()
