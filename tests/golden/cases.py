"""What the golden command lines are made of, and the files and sweeps that they read, in the folder where they run.

The command lines themselves are in the golden files, each after a `$`.
"""

import json
import random
import re
import shlex
from pathlib import Path
from typing import Any

from tests.data.conftest import write_jsonl

COMMIT = "0123456789abcdef0123456789abcdef01234567"
"""A revision that is a commit is not looked up on the hub."""

TASK = (
    "eval=files eval.tasks.summarisation.path=task.jsonl ~eval.tasks.question_answering ~eval.tasks.data_to_text "
    "~eval.tasks.instruction_following"
)
SHORT = {
    "HUB": f"model.revision={COMMIT} data.base.revision={COMMIT}",
    "HUB_POOL": f"model.revision={COMMIT} data.base.revision={COMMIT} data.pool.revision={COMMIT}",
    "TASK": TASK,
    "FILES": "model=tiny data=files_200k data.base.path=base.jsonl data.pool.path=pool.jsonl data.rows=90 "
    "data.base.rows=50",
    "SMOKE": "+experiment=smoke data=files_100k data.name=files data.base.path=base.jsonl data.rows=24 "
    f"trainer.learning_rate=1e-2 {TASK}",
    "PACKED": "trainer.packing=true trainer.conversations_per_step=null trainer.tokens_per_step=256",
    "PREPARE": "model=tiny data=files_100k data.rows=10 tracking=none eval=pydocs",
}
"""Words that stand for several overrides in the command lines of the golden files."""

SMOKE_RUNS = [
    "SMOKE",
    "SMOKE PACKED",
    "SMOKE lora.lora_dropout=0.2 seed=1",
    "SMOKE lora=none trainer.learning_rate=1e-3",
]

TOKENIZERS = ("tiny", "smollm2_135m", "llama3")
"""Two models of `conf/model`, and the tokenizer of the wheel `llama-models`."""


def overrides(line: str) -> list[str]:
    """Return the arguments of a command line, with what the words of `SHORT` stand for."""
    return shlex.split(" ".join(SHORT.get(word, word) for word in line.split(" ")))


WORDS = re.findall(
    r"\w+",
    "harbour morning boats water tide river stone bridge winter letter market garden number table engine station paper "
    "signal window mountain cable summer road yellow quiet early under between carries follows measures holds",
)


def words(generator: random.Random, count: int) -> str:
    return " ".join(generator.choices(WORDS, k=count)).capitalize() + "."


def row(generator: random.Random, number: int) -> dict[str, Any]:
    """Return a conversation of one to three exchanges in ShareGPT's shape, some with what filters look for."""
    turns = []
    for turn in range(generator.choice((1, 1, 1, 2, 3))):
        answer = words(generator, generator.randint(2, 40))
        answer = {3: "I'm sorry, but I can't help with that.", 5: f"See\n```py\n{answer}\n", 7: "again and " * 40}.get(
            number % 17, answer
        )
        turns += [
            {"from": "human", "value": f"Question {number}.{turn}: {words(generator, 9)}"},
            {"from": "gpt", "value": answer},
        ]
    return {
        "conversations": turns,
        "source": ("math", "code", "chat-2.0")[number % 3],
        "quality": round(generator.random() * 5, 3),
    }


def write_files(folder: Path) -> None:
    """Write the data, the task, broken files, and a run that is not finished."""
    generator = random.Random(14)
    base = [row(generator, number) for number in range(60)]
    pool = [row(generator, number) for number in range(40, 340)]
    pool += base[:10]  # repeats of the base
    pool += [vary(one) for one in pool[20:60]]  # near-duplicates
    examples = [{"id": str(n), "input": words(generator, 30), "references": [words(generator, 20)]} for n in range(8)]
    for number, example in enumerate(examples):  # contamination
        pool[number * 7]["conversations"][-1]["value"] = f"So: {example['references'][0]} And {number}"
    write_jsonl(folder / "base.jsonl", base)
    write_jsonl(folder / "pool.jsonl", pool)
    write_jsonl(folder / "task.jsonl", examples)
    write_jsonl(folder / "roles.jsonl", [*base[:5], {"conversations": [{"from": "narrator", "value": "once"}]}])
    write_jsonl(folder / "columns.jsonl", [{"title": "a", "score": 1}] * 3)
    write_jsonl(folder / "empty.jsonl", [])
    write_jsonl(folder / "unanswered.jsonl", [{"conversations": one["conversations"][:1]} for one in base])
    (folder / "broken.jsonl").write_text(json.dumps(base[0]) + "\n" + json.dumps(base[1])[:40] + "\n")
    (folder / "notes.txt").write_text("notes\n")
    (folder / "multirun" / "table").mkdir(parents=True)
    unfinished = folder / "outputs" / "unfinished"
    unfinished.mkdir(parents=True)
    (unfinished / "run.json").write_text(json.dumps({"schema": 1, "run_id": "unfinished", "status": "running"}))
    (unfinished / "config.yaml").write_text("model:\n  name: tiny\n")


def vary(given: dict[str, Any]) -> dict[str, Any]:
    *turns, last = given["conversations"]
    return {**given, "conversations": [*turns, {**last, "value": f"{last['value']} Indeed."}]}


CONVERSATIONS = [
    [("user", "hi"), ("assistant", "hello")],
    [("user", "hi"), ("assistant", "hello"), ("user", "and?"), ("assistant", "bye"), ("user", "?"), ("assistant", "n")],
    [("system", "be kind"), ("user", "hi"), ("assistant", "hello")],
    [("system", ""), ("user", "hi"), ("assistant", "hello")],
    [("user", "é 漢字 😀"), ("assistant", "😀👩‍👩‍👧 naïve — “quoted” 🎉")],
    [("user", "q\n"), ("assistant", "def f(x):\n    return x  + 1\n\t# end")],
    [("user", "weather?"), ("assistant", "call()"), ("tool", '{"sky": "blue"}'), ("assistant", "blue")],
    [("user", "what is <|im_end|> and <|eot_id|>?"), ("assistant", "<|eot_id|> ends, as <|im_end|> does")],
    [("user", "too long"), ("assistant", "word " * 200)],
]

SCORES = {"rouge1": 0.4, "rouge2": 0.2, "rougeL": 0.32}
SCORED = ("question_answering", "summarisation")
EXAMPLES = 12


def write_sweeps(parent: Path) -> list[Path]:
    """Write a sweep over the size of the data in which more helps, and one over the adapter's rank with gaps."""
    sizes, ranks = parent / "sizes", parent / "ranks"
    for size in (1, 2, 3):
        for seed in range(3):
            write_run(sizes, f"tiny-mix_{size}k-s{seed}", f"mix_{size}k", 1000 * size, seed, 0.05 * size)
    for rank in (4, 16):
        for seed in range(2):
            write_run(ranks, f"tiny-mix_1k-s{seed}-r{rank}", "mix_1k", 1000, seed, 0.002 * rank, rank)
    failed = ranks / "tiny-mix_1k-s2-r4"
    failed.mkdir()
    record = {"schema": 1, "run_id": failed.name, "status": "failed", "error": "RuntimeError: out of memory"}
    (failed / "run.json").write_text(json.dumps(record))
    absent = {"run_id": "tiny-mix_1k-s2-r16", "overrides": ["lora.r=16", "seed=2"], "model": "tiny", "data": "mix_1k"}
    done = [{"run_id": path.name, "overrides": []} for path in sorted(ranks.iterdir())]
    (ranks / "sweep.json").write_text(json.dumps({"schema": 1, "cells": [*done, {**absent, "seed": 2}]}))
    return [sizes, ranks]


def write_run(sweep: Path, name: str, data: str, rows: int, seed: int, gain: float, rank: int = 16) -> None:
    """Write a completed run: config.yaml with what differs from the defaults, run.json, the scored answers."""
    folder = sweep / name
    folder.mkdir(parents=True)
    streams = ", ".join(f"{stream}: {seed}" for stream in ("data", "order", "adapter", "generation"))
    (folder / "config.yaml").write_text(
        f"model: {{name: tiny, id: tiny}}\ndata: {{name: {data}, rows: {rows}}}\nlora: {{r: {rank}}}\n"
        f"seed: {seed}\nseeds: {{{streams}}}\n"
    )
    stages = {"base": write_stage(folder, "base", 0.0, "base"), "tuned": write_stage(folder, "tuned", gain, name)}
    train = {"steps": 10, "tokens": rows * 90, "seconds": 9.0, "tokens_per_second": 300.0, "final_loss": 1.5 - gain}
    record = {
        "schema": 1,
        "run_id": name,
        "status": "completed",
        "config_hash": name,
        "seed": seed,
        "model": {"name": "tiny", "id": "test/tiny", "revision": "1", "backend": "x", "quantization": "none"},
        "data": {"name": data, "rows": rows, "digest": data, "tokens": rows * 100, "trainable_tokens": rows * 40},
        "train": {**train, "peak_memory_bytes": 10**9},
        "eval": stages,
        "versions": {"tometune": "0"},
        "git": {"commit": "0" * 40, "dirty": False},
        "started": "2026-11-24T12:00:00+00:00",
        "finished": "2026-11-24T12:10:00+00:00",
        "attempts": 1,
    }
    (folder / "mix.json").write_text(json.dumps({"name": data, "seed": seed, "rows": rows, "sources": {"a": rows}}))
    curve = [{"step": step, "loss": 2 - step / 20, "tokens_per_second": 300.0} for step in range(1, 11)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(point) + "\n" for point in curve))
    (folder / "run.json").write_text(json.dumps(record))


def write_stage(folder: Path, stage: str, gain: float, seed: str) -> dict[str, Any]:
    """Write the answers of each task with their scores; returns what run.json says of the stage."""
    generator = random.Random(seed)
    where = folder / "eval" / stage
    where.mkdir(parents=True)
    tasks: dict[str, Any] = {}
    for task in SCORED:
        answers = []
        for number in range(EXAMPLES):
            level = gain + 0.01 * number
            scores = {metric: round(start + level + generator.gauss(0, 0.02), 6) for metric, start in SCORES.items()}
            answer = {"id": f"{task}-{number}", "prompt": "?", "prediction": "!", "references": [f"reference {number}"]}
            answers.append({**answer, "scores": scores, "tokens": 5 + number})
        (where / f"{task}.jsonl").write_text("".join(json.dumps(answer) + "\n" for answer in answers))
        means = {metric: sum(answer["scores"][metric] for answer in answers) / EXAMPLES for metric in SCORES}
        tasks[task] = {**means, "examples": EXAMPLES, "tokens": sum(answer["tokens"] for answer in answers)}
    means = {metric: sum(task[metric] for task in tasks.values()) / len(SCORED) for metric in SCORES}
    return {**means, "tasks": tasks, "limited": False}
