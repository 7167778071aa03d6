"""Names of metrics: those of this package, of installed packages, and functions in the user's current folder."""

import math
import sys
from collections.abc import Sequence
from functools import cache
from hashlib import sha256
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from tometune.common.errors import UserError, did_you_mean, one_line

METRICS = ("rouge", "chrf", "bleu", "token_f1", "exact_match")
"""Metrics of this package; `tometune.evaluation.metrics` computes them."""

ENTRY_POINTS = "tometune.metrics"
"""Group of entry points in which an installed package names its metrics."""

RECORDED = ("rouge1", "rouge2", "rougeL", *METRICS[1:], "nll", "win")
"""Columns of a run; on held-out rows there is also `nll/TASK`."""

RESERVED = {*RECORDED, "tasks", "limited", "seconds", "tokens", "tokens_per_second", "examples", "judge", "sources"}
RESERVED |= {"means", "shortened", "unended", "engine", "batch_size", "unicode_words"}
"""Keys next to the columns in the record of a run, which a column of the user's must not have."""


def metric_problem(key: str, name: str) -> str | None:
    """Check that a metric exists; one that is not of this package is imported and tried."""
    try:
        _ = name in METRICS or own_metric(name)
    except UserError as error:
        return f"{key}={error}"
    return None


def own_metric(name: str) -> tuple[Any, str]:
    """Return a metric that is not of this package, and what identifies it: the file's digest, or package and version.

    `module:function` is read from `module.py` in the current folder and from nowhere else. A run that somebody else
    made names its metrics too, and must not be able to name any function that is installed here.

    Raises:
        UserError: there is no such metric, or it cannot be imported, or a trial call fails. Begins with the name.
    """
    module, colon, function = name.partition(":")
    if colon:
        path = Path(f"{module.replace('.', '/')}.py").absolute()
        if not all(map(str.isidentifier, module.split("."))) or not path.is_file():
            near = did_you_mean(module, [file.stem for file in Path().glob("*.py")])
            raise UserError(f"{name}: no file {path.name} in {path.parent}{near}")
        digest = sha256(path.read_bytes()).hexdigest()
        return _imported(name, path, function, digest), f"{name} {digest}"
    installed = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if name not in installed:
        known = (*METRICS, *sorted(installed))
        near = did_you_mean(name, known)
        raise UserError(f"{name}: one of {', '.join(known)}, or MODULE:FUNCTION for a function in MODULE.py{near}")
    package = installed[name].dist
    return _loaded(name, installed[name].load), f"{name} of {package and f'{package.name} {package.version}'}"


@cache
def _imported(name: str, path: Path, function: str, digest: str) -> Any:
    def load() -> Any:
        if str(path.parent) not in sys.path:  # for other files that it imports; `python -m` has the folder already
            sys.path.append(str(path.parent))
        # Not under its own name: after an edit, in a notebook, it is another module.
        sys.modules[f"{path.stem}_{digest}"] = module = ModuleType(f"{path.stem}_{digest}")
        exec(compile(path.read_bytes(), path, "exec"), vars(module))  # noqa: S102 - the file that the user names
        names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        if function not in names:
            raise UserError(f"{name}: {path.name} has no function {function}{did_you_mean(function, names)}")
        return getattr(module, function)

    return _loaded(name, load)


def _loaded(name: str, load: Any) -> Any:
    """Load a metric and call it once. One with a model is not called yet, because that takes long."""
    try:
        metric = load()
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{name}: cannot be imported ({type(error).__name__}: {one_line(error)})") from None
    if not hasattr(metric, "revision"):
        own_scores(name, metric, ["a word"], [["a word", "another"]])
    return metric


def own_scores(
    name: str, metric: Any, predictions: Sequence[str], references: Sequence[Sequence[str]], *context: Any
) -> dict[str, list[float]]:
    """Call a metric that is not of this package, and return its columns.

    Raises:
        UserError: it raises, or does not return one finite number per prediction in columns of its own.
    """
    try:
        found = {
            column: [float(value) for value in values]
            for column, values in metric(list(predictions), [list(texts) for texts in references], *context).items()
        }
    except Exception as error:
        raise UserError(
            f"{name}: the metric fails with {type(error).__name__}: {one_line(error)}; correct it"
        ) from None
    for column, values in found.items():
        if column in RESERVED or not column.isidentifier():
            raise UserError(f"{name}: its column {column!r} needs another name: letters, digits and _, not one of ours")
        if len(values) != len(predictions) or not all(map(math.isfinite, values)):
            raise UserError(f"{name}: {column} must have one finite number for each of {len(predictions)} predictions")
    return found
