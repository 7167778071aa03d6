"""Figures of bench_gpu.py: medians, arithmetic limits, the cost of a whole table, and the printed table."""

from collections.abc import Sequence
from itertools import accumulate
from statistics import median
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

Result = dict[str, Any]

SEEDS = 3
MIXES = {"100k": (100_000, 0), "200k": (100_000, 100_000), "300k": (100_000, 200_000)}
"""Conversations of the base and of the pool in each mix of the table."""

FLOP_PER_PARAMETER = 4
"""A token's forward pass takes 2 FLOP a parameter and the gradient of the activations 2 more. LoRA leaves out the
gradient of the weights; what checkpointing computes twice is no work done, and attention itself is left out."""


def parameters(shape: Result) -> int:
    """Return the parameters of a Llama of this shape (keys as in its config.json); tied embeddings count once."""
    hidden, heads = shape["hidden_size"], shape["num_attention_heads"]
    width = shape.get("head_dim") or hidden // heads
    attention = 2 * hidden * heads * width + 2 * hidden * shape["num_key_value_heads"] * width
    layer = attention + 3 * hidden * shape["intermediate_size"] + 2 * hidden
    tables = 1 if shape.get("tie_word_embeddings") else 2
    return int(shape["num_hidden_layers"] * layer + hidden + tables * shape["vocab_size"] * hidden)


def mfu(tokens_per_second: float, count: int, flops: float) -> float:
    """Return the share of the measured matrix product's speed: 4 × parameters × tokens/s ÷ FLOP/s."""
    return FLOP_PER_PARAMETER * count * tokens_per_second / flops


def table_tokens(base_mean: float, pool_mean: float) -> float:
    """Return the real tokens of the table's nine runs, from the mean tokens of a conversation of base and pool."""
    return SEEDS * sum(base * base_mean + pool * pool_mean for base, pool in MIXES.values())


def table_hours(tokens_per_second: float, tokens: float, start_seconds: float) -> float:
    """Return GPU hours of the nine trainings: their tokens, and the time to the first step of each."""
    return (tokens / tokens_per_second + SEEDS * len(MIXES) * start_seconds) / 3600


def summary(steps: Sequence[Result], warmup: int) -> Result:
    """Return what the steps after the warm-up say.

    Args:
        steps: each with `tokens_per_second` (real), `padded_tokens_per_second` and, where measured, `tokens`. An
            entry can cover several steps (`steps`).
        warmup: entries with one of the first `warmup` steps are left out.

    Raises:
        ValueError: nothing is left.
    """
    ends = accumulate(each.get("steps", 1) for each in steps)
    kept = [each for each, end in zip(steps, ends, strict=True) if end - each.get("steps", 1) >= warmup]
    if not kept:
        raise ValueError(f"{len(steps)} rates, none of them after the {warmup} steps of warm-up")
    rates = [each["tokens_per_second"] for each in kept]
    # Steps of a token budget weigh the same; those of a number of conversations weigh by their tokens.
    weights = [each.get("tokens", float(each.get("steps", 1))) for each in kept]
    seconds = sum(weight / rate for weight, rate in zip(weights, rates, strict=True))
    padded = sum(
        weight * each["padded_tokens_per_second"] / each["tokens_per_second"]
        for weight, each in zip(weights, kept, strict=True)
    )
    return {
        "steps": sum(each.get("steps", 1) for each in kept),
        "tokens_per_second": {"median": median(rates), "min": min(rates), "max": max(rates)},
        "overall_tokens_per_second": sum(weights) / seconds,
        "padding_share": max(0.0, 1 - sum(weights) / padded),
    }


def finish(result: Result, facts: Result, warmup: int, price: float | None = None) -> Result:
    """Return a contender's result with everything that is derived from its steps; `price` is that of a GPU hour.

    Without mean tokens of the rows in `facts`, the table's hours and a run's price are None.
    """
    done = {**result, **summary(result["steps"], warmup), "raw_steps": result["steps"]}
    speed = done["tokens_per_second"]["median"]
    flops = facts.get("matmul_flops")
    done["mfu"] = mfu(speed, facts["parameters"], flops) if flops else None
    done["table_hours"] = done["run_dollars"] = None
    if "base_mean_tokens" in facts:
        tokens = table_tokens(facts["base_mean_tokens"], facts["pool_mean_tokens"])
        done["table_hours"] = table_hours(done["overall_tokens_per_second"], tokens, done["seconds_to_first_step"])
        done["run_dollars"] = None if price is None else price * done["table_hours"] / (SEEDS * len(MIXES))
    return done


def training_table(contenders: dict[str, Result]) -> Table:
    """Return the contenders as a table; those that failed say why."""
    shown = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    rates = ("tokens/s", "min", "max", "overall", "padding", "MFU")
    names = ("training", *rates, "peak GB", "start s", "9 runs h", "$ a run", "loss", "norm")
    for number, name in enumerate(names):
        shown.add_column(name, justify="right" if number else "left", no_wrap=True)
    for name, each in contenders.items():
        if "error" in each:
            shown.add_row(name, "failed")
            continue
        rate = each["tokens_per_second"]
        speeds = (rate["median"], rate["min"], rate["max"], each["overall_tokens_per_second"])
        used = "" if each["mfu"] is None else f"{each['mfu']:.1%}"
        rest = (f"{each['padding_share']:.1%}", used, f"{each['peak_memory_gb']:.1f}")
        dollars = "" if each["run_dollars"] is None else f"{each['run_dollars']:.2f}"
        hours = "" if each["table_hours"] is None else f"{each['table_hours']:.2f}"
        learned = (f"{each['loss']:.3f}", f"{each['grad_norm']:.3f}")  # a record that does not learn is none
        ends = (f"{each['seconds_to_first_step']:.0f}", hours, dollars, *learned)
        shown.add_row(name, *(f"{speed:,.0f}" for speed in speeds), *rest, *ends)
    return shown


def generation_table(generation: dict[str, Result]) -> Table:
    """Return the speeds of generation as a table."""
    shown = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for number, name in enumerate(("generation", "batch", "tokens/s", "peak GB")):
        shown.add_column(name, justify="right" if number else "left", no_wrap=True)
    for name, each in generation.items():
        if "error" in each:
            shown.add_row(name, "", "failed")
        for run in each.get("runs", []):
            speed = f"{run['tokens_per_second']:,.0f}" if "tokens_per_second" in run else "failed"
            shown.add_row(name, str(run["batch"]), speed, f"{run.get('peak_memory_gb', 0):.1f}")
    return shown


def lines(report: Result) -> list[str | Table]:
    """Return the whole report, from what the JSON file holds."""
    facts = report["facts"]
    said: list[str | Table] = [f"{name}: {value}" for name, value in report["circumstances"].items()]
    flops = facts.get("matmul_flops")
    if flops:
        said.append(f"bf16 matrix product of 8192³: {flops / 1e12:.0f} TFLOP/s")
    if report["contenders"]:
        said.append("MFU = 4 × parameters × real tokens/s ÷ that product's FLOP/s; tokens/s: median of log lines")
        said.append("9 runs h: 3 seeds × (100k + 200k + 300k conversations) at the overall rate, and 9 starts")
        said.append("loss, norm: mean training loss of the last log line, and norm of the gradients at its end")
        said.append(training_table(report["contenders"]))
        for name, each in report["contenders"].items():
            own = [f"{key} {each[key]}" for key in ("shape", "storage", "max_length") if key in each]
            said += [f"{name}: {', '.join(own)}"] if own else []
    if report["generation"]:
        said.append(generation_table(report["generation"]))
    for name, each in {**report["contenders"], **report["generation"]}.items():
        if "error" in each:
            said.append(f"{name}: {each['error']}")
        said += [f"{name}, batch {run['batch']}: {run['error']}" for run in each.get("runs", []) if "error" in run]
    return said
