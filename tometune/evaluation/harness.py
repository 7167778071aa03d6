"""Tasks of lm-evaluation-harness (`eval.harness`), whose samples are kept per example like those of `eval.tasks`.

Prompts, few-shot examples, generation and metrics are the harness's own (`lm_eval.simple_evaluate`), with the model's
chat template. The columns are the metrics that it averages over examples and of which more is better.
"""

import json
import logging
import math
import time
from functools import cache
from hashlib import sha256
from importlib import metadata, util
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from tometune.common.errors import UserError, did_you_mean, one_line
from tometune.config.eval import HARNESS, EvalConfig
from tometune.data.sources import content_digest
from tometune.evaluation.results import TaskScores, read_result, write_result

log = logging.getLogger(__name__)

BATCH = 8  # the harness keeps the logits of whole prompts in float32: 1 GB for 2,000 tokens of a vocabulary of 128,000


def fingerprint(task: str) -> str:
    """Return what identifies a task: the content of its YAML file and of those it names, else that the package has it.

    Modules that the file's functions import are not followed.
    """
    if not task.endswith(".yaml"):
        return "lm_eval"
    files, digests = [Path(task)], list[bytes]()
    for file in files:  # the list grows by the files that each one names
        digests.append(content_digest(file))
        files += [path for path in _named_by(file) if path not in files]
    return (digests[0] if len(digests) == 1 else sha256(b"".join(digests)).digest()).hex()


def _named_by(file: Path) -> list[Path]:
    """Return the files that a task's YAML file names: those of `include`, and the modules of `!function` next to it."""
    if file.suffix == ".py":
        return []
    text, folder = file.read_bytes(), file.resolve().parent
    try:
        root, events = yaml.compose(text), list(yaml.parse(text))
    except yaml.YAMLError:  # loading the task reports it
        return []
    pairs = root.value if isinstance(root, yaml.MappingNode) else []
    values = [node for key, node in pairs if key.value == "include"]
    nodes = [node for value in values for node in (value.value if isinstance(value, yaml.SequenceNode) else [value])]
    included = [folder / str(node.value) for node in nodes]
    functions = [each.value for each in events if isinstance(each, yaml.ScalarEvent) and each.tag == "!function"]
    modules = [folder / f"{name.rpartition('.')[0].replace('.', '/')}.py" for name in functions]
    return [*included, *filter(Path.is_file, modules)]


@cache
def load_harness(names: tuple[str, ...]) -> dict[str, tuple[Any, str]]:
    """Load the tasks of `eval.harness`; returns task objects of the package by our name, with digests of their content.

    Raises:
        UserError: the package is missing, or a task is unknown or cannot be loaded.
    """
    if not names:
        return {}
    if util.find_spec("lm_eval") is None:
        fix = "bash scripts/setup.sh harness, or pip install 'lm_eval[hf,ifeval]'"
        raise UserError(f"eval.harness: needs lm-evaluation-harness; run: {fix}")
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_defaults=not all(name.endswith(".yaml") for name in names))
    found = {}
    for name in names:
        if not name.endswith(".yaml") and name not in manager.all_tasks:
            near = did_you_mean(name, manager.all_tasks)
            raise UserError(f"eval.harness={name}: no such task{near}; python -m lm_eval ls tasks lists all")
        try:
            for own, task in manager.load([name])["tasks"].items():
                content = json.dumps([fingerprint(name), task.VERSION, list(task.eval_docs)], default=str)
                found[f"{HARNESS}{own}"] = task, sha256(content.encode()).hexdigest()
        except Exception as error:  # of the hub, a package that the task needs, or the task's own code
            reason = f"{type(error).__name__}: {one_line(error)}"[:300]
            raise UserError(f"eval.harness={name}: cannot be loaded ({reason}); fix this, or leave it out") from error
    return found


def score_harness(folder: Path, model: Any, tokenizer: Any, config: EvalConfig, weights: str) -> dict[str, TaskScores]:
    """Score a model in eval mode on `eval.harness`; `folder` is that of the stage, `weights` the model's digest.

    Results with the same weights, content and settings are reused.

    Raises:
        UserError: a task cannot be loaded, or the harness refuses to run it.
    """
    tasks = load_harness(tuple(config.harness))
    size = config.batch_size or BATCH
    key = {"weights": weights, "lm_eval": metadata.version("lm_eval"), "batch_size": size, "limit": config.limit}
    found = {name: read_result(folder / f"{name}.jsonl", key | {"task": tasks[name][1]}) for name in tasks}
    missing = [name for name, result in found.items() if result is None]
    if missing:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager

        start = time.perf_counter()
        try:
            evaluated = simple_evaluate(
                model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=size),
                tasks=[tasks[name][0] for name in missing],
                task_manager=TaskManager(include_defaults=False),  # else it lists the package's 10,000 tasks again
                limit=config.limit,
                apply_chat_template=True,
                bootstrap_iters=0,  # the intervals are ours
            )
        except ValueError as error:  # e.g. a task that runs generated code
            raise UserError(f"eval.harness: {one_line(error)}; leave this task out") from error
        seconds = time.perf_counter() - start
        for name in missing:
            rows = _rows(tasks[name][0], evaluated["samples"][name.removeprefix(HARNESS)])
            result = found[name] = {
                "means": {column: fmean(row["scores"][column] for row in rows) for column in rows[0]["scores"]},
                "examples": len(rows),
                "seconds": round(seconds / len(missing), 3),
                "limited": len(rows) < len(tasks[name][0].eval_docs),
            }
            lines = [json.dumps(row, ensure_ascii=False) for row in rows]
            write_result(folder / f"{name}.jsonl", key | {"task": tasks[name][1]}, lines, result)
            log.info("%s %s: %d examples, %s", folder.name, name, len(rows), result["means"])
    return {name: result for name, result in found.items() if result is not None}


def _rows(task: Any, samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row per document. Each filter of the answers has samples of its own, e.g. `exact_match.strict-match`."""
    better, functions = task.higher_is_better(), task.aggregation()
    rows: dict[int, dict[str, Any]] = {}
    for sample in sorted(samples, key=lambda sample: int(sample["doc_id"])):
        first, target = sample["resps"][0][0], sample["target"]
        row = {
            "id": str(sample["doc_id"]),
            "prompt": sample["arguments"][0][0],
            "prediction": first if isinstance(first, str) else json.dumps(sample["resps"]),  # of the choices
            "references": [str(text) for text in (target if isinstance(target, list) else [target])],
            "scores": {},
        }
        scores = rows.setdefault(sample["doc_id"], row)["scores"]
        for name in sample["metrics"]:
            averaged = getattr(functions.get(name), "__name__", "") == "mean" and better.get(name)
            if averaged and isinstance(sample[name], (bool, int, float)) and math.isfinite(sample[name]):
                scores[name if sample["filter"] == "none" else f"{name}.{sample['filter']}"] = float(sample[name])
    columns = set.intersection(*(set(row["scores"]) for row in rows.values()))
    if not columns:
        raise UserError(f"eval.harness={task.task_name}: has no metric that is a number per example; leave it out")
    for row in rows.values():
        row["scores"] = {name: score for name, score in row["scores"].items() if name in columns}
    return list(rows.values())
