"""Scores of a stage: generate, score by example, keep, average."""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from hashlib import sha256
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tometune.config.eval import EvalConfig
from tometune.distributed import by_first, gather, is_first
from tometune.evaluation.engines.base import Engine
from tometune.evaluation.engines.choose import engine_for
from tometune.evaluation.engines.decoder import PREFILL_TOKENS
from tometune.evaluation.generation import Generations, generate
from tometune.evaluation.memory import rows_that_fit
from tometune.evaluation.metrics import Scores, score
from tometune.evaluation.progress import answers_bar
from tometune.evaluation.results import TaskResult, read_result, write_result
from tometune.evaluation.tasks import Task

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""Called with a task's name, its answers so far and its number of examples."""

StageScores = dict[str, Any]
"""What run.json says of a stage: `{rouge1, rouge2, rougeL, tasks: {task: {…, examples}}, limited, seconds, …}`."""


def score_stage(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[Task],
    config: EvalConfig,
    folder: Path,
    stage: str,
    seed: int = 0,
    progress: Progress | None = None,
) -> StageScores:
    """Score a model on every task, one `<folder>/eval/<stage>/<task>.jsonl` each.

    A task whose file is complete, and was made by the same weights from the same examples and settings, is not done
    again; a broken or foreign one is.

    Args:
        model: the model of this stage.
        tokenizer: its tokenizer.
        tasks: the loaded tasks.
        config: the `eval` group.
        folder: the run's folder.
        stage: `base` or `tuned`.
        seed: `seeds.generation`, of drawn answers; greedy ones do not use it.
        progress: told of finished answers; None shows a bar where stderr is a terminal.

    Returns:
        Means by task, and over tasks the plain mean of those (each task weighs the same), with what it cost.

    Raises:
        UserError: a prompt cannot be shortened enough, or the device has too little memory.
    """
    warn_of_limit(tasks)
    weights = weights_digest(model)
    longest_row = config.max_prompt_tokens + max(task.config.max_new_tokens for task in tasks)
    results: dict[str, TaskResult] = {}
    with (
        answers_bar(stage, progress) as tell,
        engine_for(config.engine, model, tokenizer, longest_row) as engine,
    ):
        sizes = _batch_sizes(model, engine, config, tasks)
        for task in tasks:
            key = {"task": task.digest, "weights": weights, "max_prompt_tokens": config.max_prompt_tokens}
            key |= {"engine": engine.name, "batch_size": sizes[task.name]}
            key |= {"temperature": config.temperature, "seed": seed} if config.temperature else {}
            path = folder / "eval" / stage / f"{task.name}.jsonl"
            found = by_first(partial(read_result, path, key))
            score_it = partial(_score_task, model, tokenizer, task, config, path, key, tell, seed, engine)
            results[task.name] = found or score_it(sizes[task.name])
            log.info("%s %s: %s%s", stage, task.name, results[task.name].line(), " (found)" if found else "")
    return _summary(tasks, results)


def warn_of_limit(tasks: Sequence[Task]) -> None:
    """Say aloud that `eval.limit` left examples out."""
    cut = [task for task in tasks if task.limited]
    if cut:
        sizes = ", ".join(f"{task.name} {len(task.examples)}" for task in cut)
        log.warning("LIMIT: eval.limit leaves only some examples (%s); such scores are no result", sizes)


def weights_digest(model: PreTrainedModel) -> str:
    """Return a sha256 over the names, shapes and 256 evenly spaced numbers of every parameter.

    Cheap (no full pass over the weights), and any training step changes it.
    """
    digest = sha256()
    for name, parameter in model.named_parameters():
        flat = parameter.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // 256)].to(device="cpu", dtype=torch.float32)
        digest.update(f"{name} {tuple(parameter.shape)}".encode() + sample.numpy().tobytes())
    return digest.hexdigest()


def _batch_sizes(model: PreTrainedModel, engine: Engine, config: EvalConfig, tasks: Sequence[Task]) -> dict[str, int]:
    """Return prompts at once by task, the same in every process; found while the memory is still free."""
    if config.batch_size is not None:
        return {task.name: config.batch_size for task in tasks}
    padded = engine.name == "transformers"
    fit = {
        new: min(gather([rows_that_fit(model, config.max_prompt_tokens, new, padded, PREFILL_TOKENS)]))
        for new in sorted({task.config.max_new_tokens for task in tasks})
    }
    return {task.name: fit[task.config.max_new_tokens] for task in tasks}


def _score_task(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    config: EvalConfig,
    path: Path,
    key: dict[str, Any],
    tell: Progress,
    seed: int,
    engine: Engine,
    batch_size: int,
) -> TaskResult:
    """Answer and score one task, and keep the result."""
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        tell(task.name, done, len(task.examples))

    tell(task.name, 0, len(task.examples))
    generations = generate(
        model,
        tokenizer,
        [example.messages for example in task.examples],
        task.config.max_new_tokens,
        batch_size,
        config.max_prompt_tokens,
        advance,
        config.temperature,
        seed,
        engine,
    )
    if generations.shortened:
        log.warning(
            "%s: %d of %d prompts cut to eval.max_prompt_tokens=%d",
            *(task.name, generations.shortened, len(task.examples), config.max_prompt_tokens),
        )
    predictions = [answer.text for answer in generations.answers]
    columns = score(task.config.metrics, predictions, [example.references for example in task.examples])
    result = TaskResult(
        means={name: fmean(values) for name, values in columns.items()},
        examples=len(task.examples),
        seconds=round(generations.seconds, 3),
        tokens=generations.tokens,
        shortened=generations.shortened,
        unended=sum(not answer.ended for answer in generations.answers),
        engine=engine.name,
        batch_size=generations.batch_size,
    )
    if is_first():
        write_result(path, key, _lines(task, generations, columns), result)
    return result


def _lines(task: Task, generations: Generations, columns: Scores) -> list[str]:
    """Return one JSON line an example."""
    lines = []
    for index, (example, answer) in enumerate(zip(task.examples, generations.answers, strict=True)):
        row = {
            "id": example.id,
            "prompt": answer.prompt,
            "prediction": answer.text,
            "references": example.references,
            "scores": {name: values[index] for name, values in columns.items()},
            "tokens": answer.tokens,
            "ended": answer.ended,
            "shortened": answer.shortened,
        }
        lines.append(json.dumps(row, ensure_ascii=False))
    return lines


def _summary(tasks: Sequence[Task], results: dict[str, TaskResult]) -> StageScores:
    """Average over tasks: every column that all of them have."""
    rows = {name: {**result.means, **_without_means(result)} for name, result in results.items()}
    columns = [name for name in next(iter(results.values())).means if all(name in r.means for r in results.values())]
    seconds = sum(result.seconds for result in results.values())
    tokens = sum(result.tokens for result in results.values())
    return {
        **{name: fmean(result.means[name] for result in results.values()) for name in columns},
        "tasks": rows,
        "limited": any(task.limited for task in tasks),
        "seconds": round(seconds, 3),
        "tokens_per_second": round(tokens / seconds, 1) if seconds else 0.0,
    }


def _without_means(result: TaskResult) -> dict[str, Any]:
    """Return the counts of a task."""
    return {name: value for name, value in asdict(result).items() if name != "means"}
