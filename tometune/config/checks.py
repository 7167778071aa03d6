"""Checks across fields, which types cannot make; each names the keys and the fix, and all are told at once."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from tometune.config.data import DataConfig, SourceConfig, SourceKind
from tometune.config.errors import ConfigError, did_you_mean
from tometune.config.eval import EngineKind, EvalConfig, TaskConfig, TaskKind
from tometune.config.lora import LoraConfig
from tometune.config.model import ModelConfig, Quantization, Weights
from tometune.config.root import Config
from tometune.config.tracking import Tracker, TrackingConfig, TrackingMode
from tometune.config.trainer import TrainerConfig

ATTENTION = ("sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention")
"""Attention kernels of transformers."""

SCHEDULES = ("linear", "cosine", "constant", "constant_with_warmup", "inverse_sqrt", "polynomial")
"""Schedules of transformers that need no further argument."""

OPTIMISERS = (
    *("adamw_torch", "adamw_torch_fused", "adamw_torch_4bit", "adamw_torch_8bit", "adamw_8bit", "adamw_bnb_8bit"),
    *("paged_adamw_8bit", "paged_adamw_32bit", "ademamix", "ademamix_8bit", "lion_8bit", "lion_32bit"),
    *("paged_lion_8bit", "paged_lion_32bit", "adafactor", "sgd", "adagrad", "rmsprop", "stable_adamw"),
)
"""Optimisers of transformers that need no further argument."""

LOSSES = ("chunked_nll", "nll", "dft")
"""Losses of TRL's SFTTrainer."""

METRICS = ("rouge", "chrf", "bleu", "token_f1", "exact_match")
"""Metrics a task can ask for."""

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
        *_check_model(config.model),
        *_check_data(config.data),
        *_check_lora(config.lora),
        *_check_trainer(config.trainer),
        *_check_eval(config.eval),
        *_check_tracking(config.tracking),
        *_check_run(config),
    ]


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


def _check_model(model: ModelConfig) -> Iterator[str]:
    """Yield the problems of the `model` group."""
    yield from _file_name("model.name", model.name)
    if not model.id:
        yield "model.id: empty; give a hub id or a local folder"
    yield from _one_of("model.attn_implementation", model.attn_implementation, ATTENTION)
    if model.weights is Weights.random and model.quantization is not Quantization.none:
        yield (
            f"model.quantization={model.quantization}: model.weights=random has nothing to quantise; "
            "set model.quantization=none or choose model=tiny"
        )


def _check_data(data: DataConfig) -> Iterator[str]:
    """Yield the problems of the `data` group."""
    yield from _file_name("data.name", data.name)
    yield from _at_least(1, {"data.rows": data.rows})
    yield from _check_source("data.base", data.base)
    if data.pool is not None:
        yield from _check_source("data.pool", data.pool)
        yield from _at_least(1, {"data.pool.rows": data.pool.rows})
    base_rows = data.base.rows
    if base_rows != data.rows:  # where it follows data.rows, that is told already
        yield from _at_least(1, {"data.base.rows": base_rows})
    if base_rows is None or base_rows < 1 or data.rows < 1:  # nothing to compare
        return
    if base_rows > data.rows:
        yield (
            f"data.rows={data.rows}: below data.base.rows={base_rows}, and a mix contains the whole base; "
            f"raise data.rows or set data.base.rows={data.rows}"
        )
    if base_rows < data.rows and data.pool is None:
        yield (
            f"data.rows={data.rows}: above data.base.rows={base_rows}, and data.pool is null; "
            f"choose a mix with a pool, e.g. data=mix_200k or files_200k, or set data.rows={base_rows}"
        )


def _check_source(key: str, source: SourceConfig) -> Iterator[str]:
    """Yield the problems of one source of rows."""
    needs = {SourceKind.hub: "id", SourceKind.files: "path"}
    values = {"id": source.id, "path": source.path}
    for kind, name in needs.items():
        if source.kind is kind and not values[name]:
            yield f"{key}.{name}: missing, {key}.kind={kind} reads it; set {key}.{name}=…"
        if source.kind is not kind and values[name]:
            yield (
                f"{key}.{name}={values[name]}: not read with {key}.kind={source.kind}; "
                f"choose a mix over {kind}, e.g. data={'mix' if kind is SourceKind.hub else 'files'}_100k"
            )
    if source.filtered and source.kind is not SourceKind.pydocs:
        yield f"{key}.filtered=true: only {key}.kind=pydocs has a filter; set {key}.filtered=false"


def _check_lora(lora: LoraConfig) -> Iterator[str]:
    """Yield the problems of the `lora` group."""
    yield from _at_least(1, {"lora.r": lora.r, "lora.lora_alpha": lora.lora_alpha})
    if not 0 <= lora.lora_dropout < 1:
        yield f"lora.lora_dropout={lora.lora_dropout}: not from 0 to below 1"
    if not lora.target_modules:
        yield "lora.target_modules: empty; name the layers that get an adapter, e.g. [q_proj,v_proj]"


def _check_trainer(trainer: TrainerConfig) -> Iterator[str]:
    """Yield the problems of the `trainer` group."""
    yield from _one_of("trainer.lr_scheduler_type", trainer.lr_scheduler_type, SCHEDULES)
    yield from _one_of("trainer.optim", trainer.optim, OPTIMISERS)
    yield from _one_of("trainer.loss_type", trainer.loss_type, LOSSES)
    counts = (
        *("max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "max_length"),
        *("logging_steps", "save_steps", "save_total_limit"),
    )
    yield from _at_least(1, {f"trainer.{name}": vars(trainer)[name] for name in counts})
    positive_or_zero = ("warmup_steps", "weight_decay", "max_grad_norm", "dataloader_num_workers")
    yield from _at_least(0, {f"trainer.{name}": vars(trainer)[name] for name in positive_or_zero})
    for name in ("learning_rate", "num_train_epochs"):
        if vars(trainer)[name] <= 0:
            yield f"trainer.{name}={vars(trainer)[name]}: not above 0"
    warmup, steps = trainer.warmup_steps, trainer.max_steps
    if warmup > 1 and not warmup.is_integer():
        yield f"trainer.warmup_steps={warmup}: neither a whole number of steps nor a share of them below 1"
    if steps is not None and warmup >= max(1, steps):
        yield (
            f"trainer.warmup_steps={warmup:g}: not below trainer.max_steps={steps}, so the peak learning rate is never "
            "used; lower trainer.warmup_steps (0.1 is a tenth of the steps) or raise trainer.max_steps"
        )


def _check_eval(config: EvalConfig) -> Iterator[str]:
    """Yield the problems of the `eval` group."""
    yield from _file_name("eval.name", config.name)
    names = ("limit", "batch_size", "max_prompt_tokens", "resamples")
    yield from _at_least(1, {f"eval.{name}": vars(config)[name] for name in names})
    yield from _at_least(0, {"eval.temperature": config.temperature})
    if config.engine is EngineKind.vllm and config.temperature:
        yield (
            f"eval.temperature={config.temperature}: eval.engine=vllm answers greedily only, for its draws would "
            "depend on the batch; set eval.temperature=0 or eval.engine=auto"
        )
    if not 0 < config.confidence < 1:
        yield f"eval.confidence={config.confidence}: not between 0 and 1"
    if not config.tasks:
        yield "eval.tasks: empty; choose eval=hub, eval=files or eval=pydocs, or add +eval/task@eval.tasks.NAME=jsonl"
    for name, task in config.tasks.items():
        yield from _file_name(f"eval.tasks.{name}", name)
        yield from _check_task(f"eval.tasks.{name}", task)


def _check_task(key: str, task: TaskConfig) -> Iterator[str]:
    """Yield the problems of one task."""
    needs = {TaskKind.hub: ("id", task.id), TaskKind.jsonl: ("path", task.path), TaskKind.pydocs: ("topic", task.topic)}
    name, value = needs[task.kind]
    if not value:
        yield f"{key}.{name}: missing, {key}.kind={task.kind} reads it; set {key}.{name}=…"
    for metric in task.metrics:
        yield from _one_of(f"{key}.metrics", metric, METRICS)
    for field, values in (("metrics", task.metrics), ("references", task.references)):
        if not values:
            yield f"{key}.{field}: empty; name at least one"
    if not re.search(r"\{[^{}]+\}", task.prompt):
        yield f"{key}.prompt: names no field of the example, so every prompt would be the same; e.g. '{{input}}'"
    yield from _at_least(
        1, {f"{key}.max_new_tokens": task.max_new_tokens, f"{key}.limit": task.limit, f"{key}.version": task.version}
    )


def _check_tracking(tracking: TrackingConfig) -> Iterator[str]:
    """Yield the problems of the `tracking` group."""
    if tracking.tracker is Tracker.none and tracking.mode is TrackingMode.online:
        yield "tracking.mode=online: tracking.tracker=none logs nowhere; choose tracking=wandb or tracking.mode=auto"
    if not tracking.project or re.search(r"[/\\#?%:]", tracking.project):
        yield f"tracking.project={tracking.project}: a name without / \\ # ? % : is needed"
    yield from _at_least(0, {"tracking.prediction_rows": tracking.prediction_rows})


def _check_run(config: Config) -> Iterator[str]:
    """Yield the problems of the seeds, the paths and the sweep."""
    for key, seed in {"seed": config.seed, **{f"seeds.{k}": v for k, v in vars(config.seeds).items()}}.items():
        if not 0 <= seed <= LARGEST_SEED and (key == "seed" or seed != config.seed):
            yield f"{key}={seed}: not from 0 to {LARGEST_SEED}"
    for name, path in vars(config.paths).items():
        if not path:
            yield f"paths.{name}: empty; give a folder"
    if config.sweep.name is not None:
        yield from _file_name("sweep.name", config.sweep.name)


def _file_name(key: str, name: str) -> Iterator[str]:
    """Yield a problem unless `name` can be part of a file name and of a tracker's id everywhere."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        fixed = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")[:64] or "name"
        yield f"{key}={name}: names a folder, so only letters, digits, . _ - and at most 64 of them; e.g. {fixed}"


def _one_of(key: str, value: str, valid: Sequence[str]) -> Iterator[str]:
    """Yield a problem unless `value` is a `valid` one."""
    if value not in valid:
        yield f"{key}={value}: one of {', '.join(valid)}{did_you_mean(value, list(valid))}"


def _at_least(least: int, values: dict[str, int | float | None]) -> Iterator[str]:
    """Yield a problem for each key whose value is below `least`; null is fine where the schema allows it."""
    for key, value in values.items():
        if value is not None and value < least:
            yield f"{key}={value}: not {least} or more"
