"""What the golden command lines are made of and the small files that they read, in the folder where they run.

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
    """Return a sentence of random words."""
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
    """Return a row with one more word at the end of its last answer."""
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
