"""Scores of a stage: generate, score by example, keep, average."""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tometune.common.distributed import by_first, gather, is_first
from tometune.config.eval import EvalConfig
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

MANY = 16_384
"""Answers that earn the seconds that compiling takes (`eval.compile=auto`)."""

Progress = Callable[[str, int, int], None]
"""Called with a task's name, its answers so far and its number of examples."""

StageScores = dict[str, Any]
"""What run.json says of a stage: `{rouge1, rouge2, rougeL, tasks: {task: {…, examples}}, limited, seconds, …}`."""


@dataclass(frozen=True)
class Scorer:
    """Scores the stages of one run, or of one model, on the same tasks."""

    tokenizer: PreTrainedTokenizerBase
    tasks: Sequence[Task]

    config: EvalConfig
    """The `eval` group."""

    folder: Path
    """The run's folder; a stage's task goes to `<folder>/eval/<stage>/<task>.jsonl`."""

    seed: int = 0
    """`seeds.generation`, of drawn answers; greedy ones do not use it."""

    progress: Progress | None = None
    """Told of finished answers; None shows a bar where stderr is a terminal."""

    def stage(self, name: str, model: PreTrainedModel) -> StageScores:
        """Score a model on every task.

        A task whose file is complete, and was made by the same weights from the same examples and settings, is not
        done again; a broken or foreign one is.

        Args:
            name: of the stage, `base` or `tuned`.
            model: the model of this stage.

        Returns:
            Means by task, and over tasks the plain mean of those (each task weighs the same), with what it cost.

        Raises:
            UserError: a prompt cannot be shortened enough, or the device has too little memory.
        """
        warn_of_limit(self.tasks)
        weights = weights_digest(model)
        results: dict[str, TaskResult] = {}
        longest_row = self.config.max_prompt_tokens + max(task.config.max_new_tokens for task in self.tasks)
        many = sum(len(task.examples) for task in self.tasks) >= MANY
        compiles = self.config.compile is True or (self.config.compile == "auto" and many)
        with (
            answers_bar(name, self.progress) as tell,
            engine_for(self.config.engine, model, self.tokenizer, longest_row, compiles) as engine,
        ):
            sizes = self._batch_sizes(model, engine)
            for task in self.tasks:
                path = self.folder / "eval" / name / f"{task.name}.jsonl"
                key = self._key(task, weights, engine, sizes[task.name])
                found = by_first(partial(read_result, path, key))
                score_it = partial(self._score_task, model, engine, task, path, key, tell)
                results[task.name] = found or score_it(sizes[task.name])
                log.info("%s %s: %s%s", name, task.name, results[task.name].line(), " (found)" if found else "")
        return _summary(self.tasks, results)

    def _batch_sizes(self, model: PreTrainedModel, engine: Engine) -> dict[str, int]:
        """Return prompts at once by task, the same in every process; found while the memory is still free."""
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
        self,
        model: PreTrainedModel,
        engine: Engine,
        task: Task,
        path: Path,
        key: dict[str, Any],
        tell: Progress,
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
            self.tokenizer,
            [example.messages for example in task.examples],
            task.config.max_new_tokens,
            batch_size,
            self.config.max_prompt_tokens,
            advance,
            self.config.temperature,
            self.seed,
            engine,
        )
        if generations.shortened:
            log.warning(
                "%s: %d of %d prompts cut to eval.max_prompt_tokens=%d",
                *(task.name, generations.shortened, len(task.examples), self.config.max_prompt_tokens),
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
            engine=engine.kind(generations.batch_size),
            batch_size=generations.batch_size,
        )
        if is_first():
            key |= {"engine": engine.kind(batch_size)}  # compiling may have failed
            write_result(path, key, _lines(task, generations, columns), result)
        return result


def warn_of_limit(tasks: Sequence[Task]) -> None:
    """Say aloud that `eval.limit` left examples out."""
    cut = [task for task in tasks if task.limited]
    if cut:
        sizes = ", ".join(f"{task.name} {len(task.examples)}" for task in cut)
        log.warning("LIMIT: eval.limit leaves only some examples (%s); such scores are no result", sizes)


def weights_digest(model: PreTrainedModel) -> str:
    """Return a sha256 over the name, shape, dtype and 256 evenly spaced numbers of every parameter.

    Cheap (no full pass over the weights), and any training step changes it.
    """
    digest = sha256()
    for name, parameter in model.named_parameters():
        flat = parameter.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // 256)].to(device="cpu", dtype=torch.float32)
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode() + sample.numpy().tobytes())
    return digest.hexdigest()


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
