"""Metrics of a training."""

import json
import logging
import math
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from tometune.common.errors import UserError
from tometune.common.files import write_text
from tometune.training.checkpoints import METER


@dataclass
class Totals:
    """What a training has cost so far."""

    seconds: float = 0.0
    """Wall clock within the training loop, saving included."""

    tokens: int = 0
    """Tokens of conversations; padding is not counted."""

    padded_tokens: int = 0
    """Tokens the hardware worked on, padding included."""

    trained_tokens: int = 0
    """Tokens with a label."""


class Meter:
    """Counts batches as they pass; stored with each checkpoint, so that a resumed training goes on counting."""

    def __init__(self, totals: Totals | None = None) -> None:
        self._totals = totals or Totals()
        self._uncounted: list[torch.Tensor] = []
        self._since = time.perf_counter()
        self._window = Totals(**asdict(self._totals))

    @classmethod
    def load(cls, checkpoint: Path) -> "Meter":
        """Return the meter as it stood at a checkpoint."""
        return cls(Totals(**json.loads((checkpoint / METER).read_text(encoding="utf-8"))))

    def save(self, checkpoint: Path) -> None:
        """Store the totals in a checkpoint's folder."""
        self._tick()
        (checkpoint / METER).write_text(json.dumps(asdict(self.totals)), encoding="utf-8")

    def start(self) -> None:
        """Start the clock: what came before (loading, compiling imports) is not training."""
        self._since = time.perf_counter()

    @property
    def totals(self) -> Totals:
        """What was counted up to now."""
        for tokens, padded_tokens, trained_tokens in (counts.tolist() for counts in self._uncounted):
            self._totals.tokens += tokens
            self._totals.padded_tokens += padded_tokens
            self._totals.trained_tokens += trained_tokens
        self._uncounted.clear()
        return self._totals

    def count(
        self,
        inputs: dict[str, Any],
        over_processes: Callable[[torch.Tensor], torch.Tensor],
        padded: int | None = None,
    ) -> None:
        """Count one batch; the counts are read when they are asked for, since reading them waits for the GPU.

        Args:
            inputs: of this process, [rows, length] each.
            over_processes: gives the sum of this process's counts and those of the others.
            padded: tokens that the hardware works on, if more than there are in the inputs.
        """
        labels, given = inputs["labels"], inputs["input_ids"].numel()
        # Made on the labels' device: a number that is copied to a GPU waits for all it is still to do.
        real = inputs["attention_mask"].sum() if "attention_mask" in inputs else labels.new_full((), given)
        counts = [real, labels.new_full((), padded or given), (labels != -100).sum()]
        self._uncounted.append(over_processes(torch.stack(counts)))

    def rates(self) -> dict[str, float]:
        """Return tokens a second since the last call, with and without padding, and the memory's peak in GB."""
        self._tick()
        seconds = max(self.totals.seconds - self._window.seconds, 1e-9)
        rates = {
            "tokens_per_second": (self.totals.tokens - self._window.tokens) / seconds,
            "padded_tokens_per_second": (self.totals.padded_tokens - self._window.padded_tokens) / seconds,
            "peak_memory_gb": peak_memory_bytes() / 1e9,
        }
        self._window = Totals(**asdict(self.totals))
        return rates

    def _tick(self) -> None:
        """Add the time since the last tick; before, what was counted is read, which waits for the GPU."""
        totals = self.totals
        now = time.perf_counter()
        totals.seconds += now - self._since
        self._since = now


def peak_memory_bytes() -> int:
    """Return the most memory taken: of the GPU as PyTorch allocated it, else of the process."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kibibytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


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
