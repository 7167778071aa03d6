"""The measurements of bench.py, each run in a process of its own: `bench_measures.py NAME ARGUMENT…`.

The last line on stdout is the result as JSON.
"""

import json
import os
import runpy
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Result = dict[str, Any]

WORDS = 60
"""Words of a text that ROUGE is measured on: about 80 tokens, what the tasks let a model write."""


def make(base: str, pool: str, rows: str) -> Result:
    """Write a base and a pool of made-up rows: lengths and turns as in the real ones, of words without a meaning."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    generator = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucmfwypvbgk"))
    lexicon = np.array(["".join(generator.choice(letters, size)) for size in generator.integers(2, 11, 20_000)])

    def text(length: int) -> str:
        numbers = np.minimum(generator.zipf(1.3, length), len(lexicon)) - 1
        return " ".join(lexicon[numbers])

    def conversation() -> list[dict[str, str]]:
        turns = 2 if generator.random() < 0.8 else 6
        lengths = generator.lognormal(3.4, 1.0, turns).astype(int) + 2
        return [{"from": ("human", "gpt")[turn % 2], "value": text(size)} for turn, size in enumerate(lengths.tolist())]

    drawn = [conversation() for _ in range(4 * int(rows))]
    kept = int(rows)
    pq.write_table(pa.table({"conversations": drawn[:kept], "source": ["made up"] * kept}), base)
    again = drawn[: kept // 5] + drawn[kept:]  # some of the pool is in the base
    pq.write_table(pa.table({"conversations": again, "dataset": ["made up"] * len(again)}), pool)
    return {"rows": kept, "pool": len(again)}


def config_of(*overrides: str) -> Any:
    """Compose the config of a command line."""
    from hydra import compose, initialize_config_dir

    from tometune.config.data import without_unused_pool
    from tometune.config.root import CONFIG_NAME, conf_dir, register, typed

    register()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = typed(compose(CONFIG_NAME, list(overrides)))
    config.data = without_unused_pool(config.data)
    return config


def mix_of(base: str, pool: str, rows: str) -> list[str]:
    """Return the overrides of a mix over files: the base alone, or three times its rows with the pool's."""
    third = int(rows) // 3 if pool else int(rows)
    more = ["data=files_300k", f"data.pool.path={pool}"] if pool else ["data=files_100k"]
    return [*more, f"data.base.path={base}", f"data.rows={rows}", f"data.base.rows={third}"]


def fresh(cache: Path) -> None:
    """Forget everything that is cached but models."""
    for kind in ("sources", "tokens"):
        shutil.rmtree(cache / kind, ignore_errors=True)


def ready(model: str) -> Result:
    """Put the model into the cache; converting SmolLM2 once takes half a minute, which is not measured."""
    from tometune.runs.inputs import RunInputs

    return {"source": RunInputs.resolve(config_of(f"model={model}", "data=pydocs_1k")).model_source.location}


def prepare(model: str, base: str, rows: str) -> Result:
    """Time reading, standardising, templates and tokens of a base, from the file to the cache."""
    from tometune.runs.inputs import RunInputs

    inputs = RunInputs.resolve(config_of(f"model={model}", *mix_of(base, "", rows)))
    fresh(inputs.cache)
    _ = inputs.tokenizer
    started, cpu = time.perf_counter(), time.process_time()
    mix = inputs.mix
    standardised = time.perf_counter()
    tokens = inputs.tokens
    ended = time.perf_counter()
    return {
        "rows": len(mix.row_ids),
        "tokens": tokens.counts.tokens,
        "seconds": ended - started,
        "standardise_seconds": standardised - started,
        "cpu_seconds": time.process_time() - cpu,
    }


def whole(model: str, base: str, pool: str, rows: str) -> Result:
    """Run the verb `prepare` with nothing cached; what is measured, the peak of memory, the parent sees."""
    fresh(Path(os.environ["TOMETUNE_CACHE"]))
    started = time.perf_counter()
    sys.argv = ["prepare", f"model={model}", *mix_of(base, pool, rows)]
    runpy.run_module("tometune.prepare", run_name="__main__")
    return {"seconds": time.perf_counter() - started}


def start(model: str, base: str, pool: str, rows: str, outputs: str) -> Result:
    """Run the verb `train` up to its first training step; returns seconds since the process began, less model load."""
    from tometune.models import load

    spent: dict[str, float] = {}
    load_model = load.load_model

    def timed(*arguments: Any) -> Any:
        import transformers

        began, cpu = time.time(), time.process_time()
        model = load_model(*arguments)
        spent.update(load=time.time() - began, load_cpu=time.process_time() - cpu)
        transformers.Trainer.training_step = first_step
        return model

    def first_step(*_: Any) -> None:
        reached = time.time() - float(os.environ["BENCH_STARTED"])
        cpu = time.process_time() - spent["load_cpu"]
        result = {"seconds": reached - spent["load"], "model_load_seconds": spent["load"], "cpu_seconds": cpu}
        print(json.dumps(result), flush=True)
        os._exit(0)

    load.load_model = timed  # type: ignore[assignment]
    choices = [
        "trainer=cpu",
        "eval=pydocs",
        "eval.base=false",
        "tracking=none",
        f"paths.outputs={outputs}/{os.getpid()}",
    ]
    sys.argv = ["train", f"model={model}", *mix_of(base, pool, rows), *choices]
    runpy.run_module("tometune.train", run_name="__main__")
    raise RuntimeError("the training had no step")


def rouge(pairs: str) -> Result:
    """Time the metric, as the evaluation calls it, and rouge_score on some of the same pairs."""
    from tometune.evaluation.metrics import score

    predictions, references = made_pairs(int(pairs))
    score(["rouge"], predictions[:100], [[text] for text in references[:100]])
    started, cpu = time.perf_counter(), time.process_time()
    score(["rouge"], predictions, [[text] for text in references])
    ended, cpu = time.perf_counter(), time.process_time() - cpu
    result: Result = {"pairs": len(predictions), "seconds": ended - started, "cpu_seconds": cpu}
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        return result
    some = list(zip(references, predictions, strict=True))[: max(len(predictions) // 50, 1)]
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    cpu = time.process_time()
    for reference, prediction in some:
        scorer.score(reference, prediction)
    return {**result, "rouge_score_pairs": len(some), "rouge_score_cpu_seconds": time.process_time() - cpu}


def made_pairs(count: int) -> tuple[list[str], list[str]]:
    """Return predictions and references from this Python's documentation, half of the words shared."""
    import random

    from tometune.data import pydocs

    text = " ".join(turn["content"] for row in pydocs.conversations(True)[:500] for turn in row["messages"])
    words = text.split()
    generator = random.Random(0)
    starts = [generator.randrange(len(words) - 2 * WORDS) for _ in range(count)]
    references = [" ".join(words[start : start + WORDS]) for start in starts]
    return [" ".join(words[start + WORDS // 2 : start + WORDS * 3 // 2]) for start in starts], references


MEASURES: dict[str, Callable[..., Result]] = {f.__name__: f for f in (make, ready, prepare, whole, start, rouge)}

if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    print("\n" + json.dumps(MEASURES[name](*arguments)), flush=True)
