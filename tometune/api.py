"""The verbs as functions, for scripts and notebooks: they print nothing, return what was made, and raise `UserError`.

Settings are those of the command line, as its texts (`"trainer.max_steps=20"`) or as keywords (`seed=1`,
`trainer={"max_steps": 20}`).
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig

from tometune.common.errors import UserError
from tometune.config.command_line import check_keys, read_command_line
from tometune.config.error_messages import composition_errors
from tometune.config.root import CONFIG_NAME, Config, check, conf_dir, register
from tometune.config.sweep_cells import jobs_of, to_config

__all__ = ["Result", "UserError", "evaluate", "report", "train"]


@dataclass(frozen=True)
class Result:
    """A run, an evaluation, or the report of a sweep."""

    folder: Path  # a sweep's holds report.html
    record: dict[str, Any]  # the content of run.json or evaluation.json, or of a sweep's table.json

    @property
    def scores(self) -> Any:
        """Means by stage, `{base|tuned: {rouge1, …, tasks: {task: {…}}}}`, or the rows of a sweep's table."""
        return self.record["eval" if "eval" in self.record else "rows"]


def train(*overrides: str, **keywords: Any) -> Result:
    """Make a run, or find it finished. With `sweep={"name": …}` it belongs to a sweep, which `report` reads.

    Raises:
        UserError: a setting, the machine, the model, the data or a task does not allow it, or the run is skipped.
    """
    from tometune.train import make_run

    with _configured("train", overrides, keywords) as config:
        if config.plan:
            raise UserError(f"plan={config.plan}: is for the command line; run tometune train … plan=true")
        run, _ = make_run(config)
    if run is None:
        raise UserError("train: the run is skipped; it failed before, or another process is making it")
    return Result(run.folder, run.record)


def evaluate(*overrides: str, **keywords: Any) -> Result:
    """Score a finished run (`run=…`) or any model (`model={"id": …}`); scores that exist are reused."""
    from tometune.evaluate import scored

    with _configured("evaluate", overrides, keywords) as config:
        subject = scored(config)
    return Result(subject.folder, subject.record)


def report(*overrides: str, **keywords: Any) -> Result:
    """Compare the runs of a sweep (`sweep={"name": …}`), or any (`runs=[…]`), and write the table and the page.

    Raises:
        UserError: the runs cannot be read or compared, or a setting is for the command line only.
    """
    from tometune.report import what_to_report, write_files

    with _configured("report", overrides, keywords) as config:
        if config.publish is not None or config.require is not None:
            raise UserError("publish, require: are for the command line; run tometune report …")
        folder, runs = what_to_report(config)
        made, page = write_files(folder, config, runs)
    return Result(page.parent, made.table)


@contextmanager
def _configured(verb: str, overrides: Sequence[str], keywords: Mapping[str, Any]) -> Iterator[Config]:
    """Yield a checked config. Hydra's record of the overrides, which verbs read, is in place while the body runs."""
    register()
    logger = logging.getLogger("tometune")
    if logger.level == logging.NOTSET:  # otherwise a run's train.log would hold warnings only
        logger.setLevel(logging.INFO)
    line = read_command_line([*overrides, *_texts(keywords)])
    check_keys(verb, line.overrides)
    if line.options is not None or jobs_of(line) is not None:
        raise UserError(f"tometune.api.{verb}: makes one run; call it for each, or run the command tometune {verb}")
    with composition_errors(), initialize_config_dir(str(conf_dir()), job_name=verb, version_base="1.3"):
        composed = compose(CONFIG_NAME, [*line.overrides, "hydra.mode=RUN"], return_hydra_config=True)
    state, before = HydraConfig.instance(), HydraConfig.instance().cfg
    state.set_config(composed)
    try:
        config = to_config(composed, composed.hydra)
        check(config)
        yield config
    finally:
        state.cfg = before


def _texts(keywords: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield keywords as overrides; the keys of a dict are joined by dots."""
    for key, value in keywords.items():
        if isinstance(value, Mapping):
            yield from _texts(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}={json.dumps(value, ensure_ascii=False, default=str)}"
