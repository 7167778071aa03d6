"""Scores of a stage: answers, metrics, and files with one JSON line per example."""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tometune.common.distributed import by_first, gather, is_first
from tometune.common.files import write_json, write_text
from tometune.common.progress import progress
from tometune.config.eval import EvalConfig
from tometune.evaluation.engines.base import Engine
from tometune.evaluation.engines.choice import engine_for, rows_that_fit
from tometune.evaluation.engines.decoder import PREFILL_TOKENS
from tometune.evaluation.generation import Generations, evaluating, generate
from tometune.evaluation.metrics import MetricContext, Scores, score
from tometune.evaluation.tasks import Task
from tometune.evaluation.unicode_words import needs_unicode

log = logging.getLogger(__name__)

MANY = 16_384
"""Number of answers from which compiling pays off (`eval.compile=auto`)."""

StageScores = dict[str, Any]
"""Entry of a stage in run.json: `{rouge1, rouge2, rougeL, tasks: {task: {…, examples}}, limited, seconds, …}`."""


@dataclass(frozen=True)
class TaskResult:
    """Scores and costs of one task."""

    means: dict[str, float]
    """Plain mean of each column of scores."""

    examples: int
    seconds: float
    """Time of generation."""

    tokens: int
    """Tokens generated."""

    shortened: int
    """Prompts truncated to `eval.max_prompt_tokens`."""

    unended: int
    """Answers that reached `max_new_tokens`."""

    engine: str
    batch_size: int

    unicode_words: int = 0
    """Examples that ROUGE compares by Unicode words, because a reference is in another script than Latin."""


@dataclass(frozen=True)
class Scorer:
    """Scores the stages of one run, or of one model, on the same tasks."""

    tokenizer: PreTrainedTokenizerBase
    tasks: Sequence[Task]

    config: EvalConfig
    """The `eval` group."""

    folder: Path
    """The run's folder; the scores of a task are kept in `<folder>/eval/<stage>/<task>.jsonl`."""

    cache: Path
    """Cache folder, for metrics that use a model."""

    seed: int = 0
    """`seeds.generation`, for drawn answers."""

    def stage(self, name: str, model: PreTrainedModel) -> StageScores:
        """Score a model on every task, with dropout off.

        A task is skipped if its file is complete and was made with the same weights, examples and settings.

        Args:
            name: of the stage, `base` or `tuned`.
            model: the model of this stage; its train or eval mode is restored.

        Returns:
            Means by task, their plain mean over tasks (each task has the same weight), and costs.

        Raises:
            UserError: a prompt cannot be shortened enough, or the device has too little memory.
        """
        if cut := [f"{task.name} {len(task.examples)}" for task in self.tasks if task.limited]:
            log.warning("LIMIT: only some examples are scored (%s); do not report these scores", ", ".join(cut))
        weights = weights_digest(model)
        results: dict[str, TaskResult] = {}
        longest_row = self.config.max_prompt_tokens + max(task.config.max_new_tokens for task in self.tasks)
        many = sum(len(task.examples) for task in self.tasks) >= MANY
        compiles = self.config.compile is True or (self.config.compile == "auto" and many)
        with evaluating(model), engine_for(self.config.engine, model, longest_row, compiles) as engine:
            sizes = self._batch_sizes(model, engine)
            for task in self.tasks:
                path = self.folder / "eval" / name / f"{task.name}.jsonl"
                key = self._key(task, weights, engine, sizes[task.name])
                found = by_first(partial(read_result, path, key))
                result = found or self._score_task(name, model, engine, task, path, key)
                results[task.name] = result
                means = ", ".join(f"{column} {mean:.4f}" for column, mean in result.means.items())
                speed = result.tokens / result.seconds if result.seconds else 0.0
                costs = f"{result.examples} examples, {result.seconds:.0f} s, {speed:.0f} tokens/s"
                log.info("%s %s: %s; %s%s", name, task.name, means, costs, " (reused)" if found else "")
        return _summary(self.tasks, results)

    def _batch_sizes(self, model: PreTrainedModel, engine: Engine) -> dict[str, int]:
        """Return prompts per batch by task, the same in every process; measured while the memory is still free."""
        config = self.config
        if config.batch_size is not None:
            return {task.name: config.batch_size for task in self.tasks}
        padded = engine.name == "transformers"
        fit = {
            new: min(gather([rows_that_fit(model, config.max_prompt_tokens, new, padded, PREFILL_TOKENS)]))
            for new in sorted({task.config.max_new_tokens for task in self.tasks})
        }
        return {task.name: fit[task.config.max_new_tokens] for task in self.tasks}

    def _key(self, task: Task, weights: str, engine: Engine, batch_size: int) -> dict[str, Any]:
        """Return everything that the scores of a task depend on."""
        key: dict[str, Any] = {"task": task.digest, "weights": weights, "engine": engine.kind(batch_size)}
        key |= {"max_prompt_tokens": self.config.max_prompt_tokens, "batch_size": batch_size}
        drawn = {"temperature": self.config.temperature, "seed": self.seed}
        return key | drawn if self.config.temperature else key

    def _score_task(
        self, stage: str, model: PreTrainedModel, engine: Engine, task: Task, path: Path, key: dict[str, Any]
    ) -> TaskResult:
        with progress(f"{stage}: {task.name}", len(task.examples)) as advance:
            generations = generate(
                model,
                self.tokenizer,
                [example.messages for example in task.examples],
                task.config.max_new_tokens,
                key["batch_size"],
                self.config.max_prompt_tokens,
                advance,
                self.config.temperature,
                self.seed,
                engine,
            )
        if generations.shortened:
            log.warning(
                "%s: %d of %d prompts truncated to eval.max_prompt_tokens=%d",
                *(task.name, generations.shortened, len(task.examples), self.config.max_prompt_tokens),
            )
        predictions = [answer.text for answer in generations.answers]
        references = [example.references for example in task.examples]
        columns = score(task.config.metrics, predictions, references, MetricContext(str(model.device), self.cache))
        result = TaskResult(
            means={name: fmean(values) for name, values in columns.items()},
            examples=len(task.examples),
            seconds=round(generations.seconds, 3),
            tokens=generations.tokens,
            shortened=generations.shortened,
            unended=sum(not answer.ended for answer in generations.answers),
            engine=engine.kind(generations.batch_size),
            batch_size=generations.batch_size,
            unicode_words=sum(any(map(needs_unicode, texts)) for texts in references),
        )
        if is_first():
            key = key | {"engine": engine.kind(key["batch_size"])}  # compiling may have failed
            write_result(path, key, _lines(task, generations, columns), result)
        return result


def write_result(path: Path, key: dict[str, Any], lines: Sequence[str], result: TaskResult) -> None:
    """Write `<task>.jsonl`, then `<task>.json` with its digest; without the second file the first is ignored.

    Args:
        path: the `.jsonl` file.
        key: everything the scores depend on.
        lines: one JSON object per example.
        result: the means and counts.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(f"{line}\n" for line in lines)
    write_text(path, text)
    digest = sha256(text.encode()).hexdigest()
    write_json(path.with_suffix(".json"), {"key": key, "sha256": digest, **asdict(result)})


def read_result(path: Path, key: dict[str, Any]) -> TaskResult | None:
    """Return the stored result of a task; None if it is missing, broken, or was made with another key."""
    try:
        stored = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        digest = sha256(path.read_bytes()).hexdigest()
    except (FileNotFoundError, ValueError):
        return None
    if not isinstance(stored, dict) or stored.pop("key", None) != key or stored.pop("sha256", None) != digest:
        return None
    return TaskResult(**stored)


def weights_digest(model: PreTrainedModel) -> str:
    """Return a sha256 over the name, shape, dtype and 256 evenly spaced numbers of every parameter.

    It is cheap (no full pass over the weights), and any training step changes it.
    """
    digest = sha256()
    for name, parameter in model.named_parameters():
        flat = parameter.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // 256)].to(device="cpu", dtype=torch.float32)
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode() + sample.numpy().tobytes())
    return digest.hexdigest()


def _lines(task: Task, generations: Generations, columns: Scores) -> list[str]:
    """Return one JSON line per example."""
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
    """Average the columns that all tasks have over tasks, and add up the costs."""
    columns = [name for name in next(iter(results.values())).means if all(name in r.means for r in results.values())]
    seconds = sum(result.seconds for result in results.values())
    tokens = sum(result.tokens for result in results.values())
    rows = {name: asdict(result) for name, result in results.items()}
    return {
        **{name: fmean(result.means[name] for result in results.values()) for name in columns},
        "tasks": {name: row.pop("means") | row for name, row in rows.items()},
        "limited": any(task.limited for task in tasks),
        "seconds": round(seconds, 3),
        "tokens_per_second": round(tokens / seconds, 1) if seconds else 0.0,
    }
