"""Names of metrics: those of this package, of installed packages, and functions in the user's current folder."""

import math
import sys
from collections.abc import Callable
from functools import cache
from hashlib import sha256
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from tometune.common.errors import UserError, did_you_mean, one_line

METRICS = ("rouge", "chrf", "bleu", "token_f1", "exact_match")
"""Metrics of this package; `tometune.evaluation.metrics` computes them."""

COLUMNS = ("rouge1", "rouge2", "rougeL", *METRICS[1:], "nll")  # of a run; on held-out rows also nll/TASK
RESERVED = {*COLUMNS, "win", "tasks", "limited", "seconds", "tokens", "tokens_per_second", "examples", "judge", "means"}
RESERVED |= {"shortened", "unended", "engine", "batch_size"}  # next to columns in run.json


def metric_problem(key: str, name: str) -> str | None:
    """Check that a metric exists; one that is not of this package is imported and tried."""
    try:
        _ = name in METRICS or own_metric(name)
    except UserError as error:
        return f"{key}={error}"
    return None


def own_metric(name: str) -> tuple[Any, str]:
    """Return a metric that is not of this package, and what identifies it: the file's digest, or package and version.

    `module:function` is read from `module.py` in the current folder and from nowhere else: a run that somebody else
    made names its metrics too, and must not be able to call any function that is installed here.

    Raises:
        UserError: there is no such metric, or it cannot be imported, or a trial call fails. Begins with the name.
    """
    module, colon, function = name.partition(":")
    if colon:
        path = Path(f"{module}.py").absolute()
        if not module.isidentifier() or not path.is_file():
            near = did_you_mean(module, [file.stem for file in Path().glob("*.py")])
            raise UserError(f"{name}: no file {path.name} in {path.parent}{near}")
        content = path.read_bytes()
        return _function(name, path, function, content), f"{name} {sha256(content).hexdigest()}"
    installed = {point.name: point for point in entry_points(group="tometune.metrics")}
    if name not in installed:
        known = (*METRICS, *sorted(installed))
        near = did_you_mean(name, known) or "; or MODULE:FUNCTION, a function in MODULE.py"
        raise UserError(f"{name}: one of {', '.join(known)}{near}")
    package = installed[name].dist
    return _tried(name, installed[name].load), f"{name} of {package and f'{package.name} {package.version}'}"


@cache
def _function(name: str, path: Path, function: str, content: bytes) -> Any:
    def load() -> Any:
        module = ModuleType(f"{path.stem}_{sha256(content).hexdigest()}")  # after an edit it is another module
        sys.modules[module.__name__] = module  # dataclasses look for it there
        exec(compile(content, path, "exec"), vars(module))  # noqa: S102 - the file that the user names
        names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        if function not in names:
            raise UserError(f"{name}: {path.name} has no function {function}{did_you_mean(function, names)}")
        return getattr(module, function)

    return _tried(name, load)


def _tried(name: str, load: Callable[[], Any]) -> Any:
    """Load a metric and call it once. One with a model is not called yet, because that takes long."""
    try:
        metric = load()
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # a script ends the process when it is imported
        raise UserError(f"{name}: cannot be imported ({type(error).__name__}: {one_line(error)}); fix it") from None
    if not hasattr(metric, "revision"):
        own_scores(name, metric, ["a word"], [["a word", "another"]])
    return metric


def own_scores(name: str, metric: Any, predictions: list[str], *more: Any) -> dict[str, list[float]]:
    """Call a metric that is not of this package with these predictions and more, and return its columns.

    Raises:
        UserError: it raises, or does not return one finite number per prediction in columns of its own.
    """
    try:
        found = {column: list(map(float, values)) for column, values in metric(predictions, *more).items()}
    except Exception as error:
        raise UserError(f"{name}: fails with {type(error).__name__}: {one_line(error)}; fix it") from None
    for column, values in found.items():
        if column in RESERVED or not column.isidentifier():
            raise UserError(f"{name}: its column {column!r} needs another name: letters, digits and _, not one of ours")
        if len(values) != len(predictions) or not all(map(math.isfinite, values)):
            raise UserError(f"{name}: {column} must have one finite number for each of {len(predictions)} predictions")
    return found
