"""Curves: `metrics.jsonl`, one line a logging step, without doubles or gaps after a resume."""

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tometune.common.errors import UserError
from tometune.common.files import write_text
from tometune.training.meter import Meter

log = logging.getLogger(__name__)

OnLog = Callable[[dict[str, float], int], None]
"""Called with the metrics and the optimiser step."""

NAMES = {"mean_token_accuracy": "token_accuracy", "num_input_tokens_seen": "tokens_seen"}
LEFT_OUT = ("num_tokens", "total_flos", "train_runtime", "train_samples_per_second", "train_steps_per_second")


class Curves:
    """Takes the trainer's logs, adds throughput, and passes them on to the file, the log and the tracker."""

    def __init__(self, path: Path, meter: Meter, on_log: OnLog) -> None:
        self.path, self.meter, self.on_log = path, meter, on_log
        self.last_loss: float | None = None

    def rewind(self, step: int) -> None:
        """Forget what was logged after a checkpoint: the steps will be made again."""
        if not self.path.exists():
            return
        lines = [line for line in self.path.read_text(encoding="utf-8").splitlines() if _step(line) <= step]
        write_text(self.path, "".join(f"{line}\n" for line in lines))  # a kill here must not lose the others
        if lines:
            self.last_loss = json.loads(lines[-1])["loss"]

    def add(self, logs: dict[str, Any], step: int) -> None:
        """Take one log of the trainer.

        Raises:
            UserError: the loss is no longer a number.
        """
        if "loss" not in logs:  # the summary at the end; run.json has it
            return
        loss = float(logs["loss"])
        if not math.isfinite(loss):
            raise UserError(
                f"trainer.learning_rate: the loss became {loss} at step {step}; lower it, or raise trainer.warmup_steps"
            )
        self.last_loss = loss
        metrics = {NAMES.get(key, key): float(value) for key, value in logs.items() if key not in LEFT_OUT}
        metrics |= self.meter.rates()
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")
        log.info(
            "step %d: loss %.4f, learning rate %.2e, %.0f tokens/s (%.0f with padding), %.1f GB",
            *(step, loss, metrics.get("learning_rate", 0.0), metrics["tokens_per_second"]),
            *(metrics["padded_tokens_per_second"], metrics["peak_memory_gb"]),
        )
        self.on_log({f"train/{key}": value for key, value in metrics.items()}, step)


def _step(line: str) -> float:
    """Return a line's step; a line broken off in the middle counts as later than all."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
