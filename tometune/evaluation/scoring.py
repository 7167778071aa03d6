"""Scores of a stage: answers, metrics, and files with one JSON line per example."""

import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tometune.common.cache import cached_folder, folder_of, remove_damaged
from tometune.common.distributed import by_first, gather, is_first
from tometune.common.errors import UserError
from tometune.common.files import SaveError
from tometune.common.progress import progress
from tometune.config.eval import EvalConfig
from tometune.data.tokens import tokenizer_key
from tometune.evaluation.engines import Engine, engine_for, rows_that_fit
from tometune.evaluation.generation import Generation, generate
from tometune.evaluation.harness import score_harness
from tometune.evaluation.judge import judge_answers
from tometune.evaluation.likelihood import bits_per_byte
from tometune.evaluation.metrics import MetricContext, Scores, averaged, score
from tometune.evaluation.results import TaskScores, read_result, write_result
from tometune.evaluation.tasks import Task
from tometune.models.base_models import weights_digest

log = logging.getLogger(__name__)

VERSION = 2  # raise it if the same answers get other scores, or the same model gives other answers
BASE_SCORES, SHARED = "base_scores", "scores.jsonl"  # folder in the cache, and its file
StageScores = dict[str, Any]  # of a stage, as in run.json: `{rouge1, rouge2, rougeL, tasks: {task: {…}}, limited, …}`


@dataclass(frozen=True)
class Scorer:
    """Scores the stages of one run, or of one model, on the same tasks."""

    tokenizer: PreTrainedTokenizerBase
    tasks: Sequence[Task]
    config: EvalConfig  # the `eval` group
    folder: Path  # of the run; the scores of a task are kept in `<folder>/eval/<stage>/<task>.jsonl`
    cache: Path  # folder for metrics that use a model
    seed: int = 0  # `seeds.generation`, for drawn answers

    def stage(self, name: str, model: PreTrainedModel) -> StageScores:
        """Score a model on every task, with dropout off.

        A task is skipped if its file is complete and was made with the same weights, examples and settings. `name` is
        that of the stage, `base` or `tuned`. The model's train or eval mode is restored.

        Returns:
            Means by task, their plain mean over tasks (each task has the same weight), and costs.

        Raises:
            UserError: a prompt cannot be shortened enough, or the device has too little memory.
        """
        if cut := [f"{task.name} {len(task.examples)}" for task in self.tasks if task.limited]:
            log.warning("LIMIT: only some examples are scored (%s); do not report these scores", ", ".join(cut))
        config, weights = self.config, weights_digest(model)
        results = self._answered(name, model, weights) if self.tasks else {}
        if config.harness:
            arguments = self.folder / "eval" / name, model, self.tokenizer, config, weights
            with evaluating(model):
                results |= by_first(partial(score_harness, *arguments))
        summary = _summary(self.tasks, results)
        if name == "tuned" and config.judge.url is not None and is_first():
            summary["judge"] = judge_answers(self.folder, self.tasks, config.judge)
        return summary

    def _answered(self, name: str, model: PreTrainedModel, weights: str) -> dict[str, TaskScores]:
        """Return the results of the tasks, of which there is at least one; without any, no engine is needed."""
        config = self.config
        shared_key = {"scores": VERSION, "weights": weights, "max_prompt_tokens": config.max_prompt_tokens}
        about = {**tokenizer_key(self.tokenizer), **_conditions(model)} if name == "base" else None
        if config.temperature:
            shared_key |= {"temperature": config.temperature, "seed": self.seed}
        longest_row = config.max_prompt_tokens + max(task.config.max_new_tokens for task in self.tasks)
        results: dict[str, TaskScores] = {}
        with evaluating(model), engine_for(config.engine, model, longest_row) as engine:
            sizes = {  # by length of answers, measured while the memory is still free; the same in every process
                new: config.batch_size or min(gather([rows_that_fit(engine, config.max_prompt_tokens, new)]))
                for new in sorted({task.config.max_new_tokens for task in self.tasks})
            }
            for task in self.tasks:
                path, size = self.folder / "eval" / name / f"{task.name}.jsonl", sizes[task.config.max_new_tokens]
                key = shared_key | {"task": task.digest, "engine": engine.name, "batch_size": size}
                base_key = about and self._base_key(task, key | about)
                found = by_first(partial(self._stored, path, key, base_key))
                if found and config.nll and "nll" not in found["means"]:  # of an older version, or without `eval.nll`
                    found = None
                result = results[task.name] = found or self._score(name, model, engine, task, path, key)
                if base_key and not found and is_first():
                    self._share(path, base_key)
                means = ", ".join(f"{column} {mean:.4f}" for column, mean in result["means"].items())
                speed = result["tokens"] / result["seconds"] if result["seconds"] else 0.0
                costs = f"{result['examples']} examples, {result['seconds']:.0f} s, {speed:.0f} tokens/s"
                log.info("%s %s: %s; %s%s", name, task.name, means, costs, " (reused)" if found else "")
        return results

    def _score(
        self, stage: str, model: PreTrainedModel, engine: Engine, task: Task, path: Path, key: dict[str, Any]
    ) -> TaskScores:
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
        answers = generations.answers
        shortened = sum(answer.prompt.shortened for answer in answers)
        if shortened:
            limit = f"eval.max_prompt_tokens={self.config.max_prompt_tokens}"
            log.warning("%s: %d of %d prompts truncated to %s", task.name, shortened, len(answers), limit)
        predictions = [answer.text for answer in answers]
        references = [example.references for example in task.examples]
        columns = score(task.config.metrics, predictions, references, MetricContext(str(model.device), self.cache))
        if self.config.nll:
            columns["nll"] = bits_per_byte(model, self.tokenizer, [answer.prompt for answer in answers], references)
        result = {
            "means": {name: fmean(values) for name, values in columns.items()},
            "examples": len(answers),
            "seconds": round(generations.seconds, 3),  # of generation
            "tokens": sum(answer.tokens for answer in answers),  # generated
            "shortened": shortened,  # prompts
            "unended": sum(not answer.ended for answer in answers),  # those that reached `max_new_tokens`
            "engine": engine.name,
            "batch_size": generations.batch_size,
        }
        if is_first():
            write_result(path, key, _lines(task, answers, columns), result)
        return result

    def _stored(self, path: Path, key: dict[str, Any], base_key: dict[str, Any] | None) -> TaskScores | None:
        """Return the stored result of a task: the run's own or, of the base model, that of any run."""
        found = read_result(path, key)
        if found or base_key is None:
            return found
        shared = folder_of(self.cache, BASE_SCORES, base_key)
        if not shared.exists() or remove_damaged(shared):
            return None
        if result := read_result(shared / SHARED, key):
            lines = (shared / SHARED).read_text(encoding="utf-8").removesuffix("\n").split("\n")
            path.parent.mkdir(parents=True, exist_ok=True)
            write_result(path, key, lines, result | {"reused": True})
        return read_result(path, key)

    def _share(self, path: Path, base_key: dict[str, Any]) -> None:
        """Copy the base model's result into the cache, so that the runs of a sweep score it once."""

        def build(folder: Path) -> None:
            for suffix in (".jsonl", ".json"):
                shutil.copyfile(path.with_suffix(suffix), (folder / SHARED).with_suffix(suffix))

        try:
            cached_folder(self.cache, BASE_SCORES, base_key, build)
        except (UserError, SaveError, OSError) as error:
            log.warning("the base model's scores are not shared with other runs: %s", error)

    def _base_key(self, task: Task, key: dict[str, Any]) -> dict[str, Any]:
        """Return everything that a task's file depends on, also what its lines only repeat."""
        labels = [[example.id, example.cluster, example.source] for example in task.examples]
        columns = [*task.config.metrics, *(["nll"] if self.config.nll else [])]
        return key | {"columns": columns, "labels": sha256(json.dumps(labels).encode()).hexdigest()}


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Put the model into eval mode, which turns dropout off, and restore its mode afterwards."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _conditions(model: PreTrainedModel) -> dict[str, Any]:
    """Return what can change the answers of equal weights: the model's settings, the machine and the versions."""
    cuda = model.device.type == "cuda"
    settings = [model.config.to_dict(), model.generation_config.to_dict() if model.generation_config else {}]
    text = json.dumps([{**each, "_name_or_path": None} for each in settings], sort_keys=True, default=str)
    return {
        "settings": sha256(text.encode()).hexdigest(),
        "attention": model.config._attn_implementation,
        "device": torch.cuda.get_device_name(model.device) if cuda else torch.backends.cpu.get_cpu_capability(),
        "versions": [metadata.version(package) for package in ("torch", "transformers")],
    }


def _lines(task: Task, answers: Sequence[Generation], columns: Scores) -> list[str]:
    lines = []
    for index, (example, answer) in enumerate(zip(task.examples, answers, strict=True)):
        row = {
            **{"id": example.id, "prompt": answer.prompt.text, "prediction": answer.text},
            **{"references": example.references, "cluster": example.cluster},
            "scores": {name: values[index] for name, values in columns.items()},
            **{"tokens": answer.tokens, "ended": answer.ended, "shortened": answer.prompt.shortened},
            "source": example.source or None,
        }
        lines.append(json.dumps({key: value for key, value in row.items() if value is not None}, ensure_ascii=False))
    return lines


def _summary(tasks: Sequence[Task], results: dict[str, TaskScores]) -> StageScores:
    """Average the columns that all tasks have over tasks, and add up the costs; see `averaged`."""
    means = [results[name]["means"] for name in averaged(results)]
    columns = [name for name in means[0] if all(name in other for other in means)]
    answered = [result for result in results.values() if "tokens" in result]  # not those of the harness
    seconds, tokens = (sum(result[name] for result in answered) for name in ("seconds", "tokens"))
    return {
        **{name: fmean(other[name] for other in means) for name in columns},
        "tasks": {
            name: result["means"] | {key: value for key, value in result.items() if key != "means"}
            for name, result in results.items()
        },
        "limited": any(task.limited for task in tasks) or any(result.get("limited") for result in results.values()),
        "seconds": round(seconds, 3),
        "tokens_per_second": round(tokens / seconds, 1) if seconds else 0.0,
    }
