"""Checks across fields, which types cannot make; each names the keys and the fix, and all are told at once.

Those of a group are beside its schema.
"""

import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from tometune.common.errors import ConfigError
from tometune.config.chat import chat_problems
from tometune.config.data import data_problems
from tometune.config.eval import eval_problems
from tometune.config.export import export_problems
from tometune.config.lora import lora_problems
from tometune.config.model import FOUR_BITS, Quantization, model_problems
from tometune.config.root import Config
from tometune.config.rules import file_name, folder
from tometune.config.tracking import tracking_problems
from tometune.config.trainer import trainer_problems

LARGEST_SEED = 2**32 - 1
"""numpy's generators take no larger one."""


def check(config: Config) -> None:
    """Check what depends on more than a type.

    Raises:
        ConfigError: with one line for each problem.
    """
    not_finite = dict(_not_finite(config))
    problems = [
        *not_finite.values(),
        *(problem for problem in _across_fields(config) if problem.partition("=")[0] not in not_finite),
    ]
    if problems:
        raise ConfigError(problems)


def _across_fields(config: Config) -> list[str]:
    """Return the problems of all groups."""
    return [
        *model_problems(config.model),
        *data_problems(config.data),
        *lora_problems(config.lora),
        *_full_problems(config),
        *trainer_problems(config.trainer),
        *eval_problems(config.eval),
        *tracking_problems(config.tracking),
        *chat_problems(config.chat),
        *export_problems(config.format, config.quant, config.push_to, config.export),
        *_run_problems(config),
        *_plan_problems(config),
    ]


def _plan_problems(config: Config) -> Iterator[str]:
    if config.plan != "measure" and not isinstance(config.plan, bool):
        yield f"plan={config.plan}: one of true, false, measure"


def _full_problems(config: Config) -> Iterator[str]:
    """Yield what keeps every weight of the model from being trained: 4 bits hold no small steps, and no gradient."""
    model = config.model
    stored = next((ending for ending in FOUR_BITS if model.id.endswith(ending)), "")
    if config.lora.enabled or not (stored or model.quantization is Quantization.nf4):
        return
    whole = f"model.id={model.id.removesuffix(stored)} (the weights in 16 bits) and " if stored else ""
    yield f"lora.enabled=false: trains every weight, and those in 4 bits cannot be; set {whole}model.quantization=none"


def _not_finite(node: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield (full key, problem) for each number below `node` that is nan or infinite."""
    for name, value in _children(node):
        if isinstance(value, float) and not math.isfinite(value):
            yield f"{prefix}{name}", f"{prefix}{name}={value}: not a finite number"
        yield from _not_finite(value, f"{prefix}{name}.")


def _children(node: Any) -> Iterator[tuple[str, Any]]:
    """Yield (name, value) for what is directly below a dataclass or a dict."""
    if isinstance(node, dict):
        yield from node.items()
    elif is_dataclass(node):
        yield from ((field.name, vars(node)[field.name]) for field in fields(node))


def _run_problems(config: Config) -> Iterator[str]:
    """Yield the problems of the seeds, the paths and the sweep."""
    for key, seed in {"seed": config.seed, **{f"seeds.{k}": v for k, v in vars(config.seeds).items()}}.items():
        if not 0 <= seed <= LARGEST_SEED and (key == "seed" or seed != config.seed):
            yield f"{key}={seed}: not from 0 to {LARGEST_SEED}"
    for name, path in vars(config.paths).items():
        yield from folder(f"paths.{name}", path)
    if config.sweep.name is not None:
        yield from file_name("sweep.name", config.sweep.name)
