"""Metrics of a training: the meter (tokens, seconds, memory) and the curves in `metrics.jsonl`."""

import json
import logging
import math
import resource
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from tometune.common.errors import UserError
from tometune.common.files import write_text
from tometune.data.encoder import IGNORE

log = logging.getLogger(__name__)

PENDING = "pending.json"  # file of a checkpoint: loss and metrics of the steps since the last log line
METER = "meter.json"  # file of a checkpoint with the totals of the meter
CURVES = "metrics.jsonl"  # file of a run, and of a checkpoint with the lines up to its step

SKIPPED_MOST, SKIPPED_SHARE = 20, 0.1
"""A training stops after this many skipped steps and this share of all steps."""

OnLog = Callable[[dict[str, float], int], None]  # called with the metrics and the optimiser step
RENAMED = {"mean_token_accuracy": "token_accuracy", "num_input_tokens_seen": "tokens_seen"}
OMITTED = ("num_tokens", "total_flos", "train_runtime", "train_samples_per_second", "train_steps_per_second")


@dataclass
class Totals:
    """The cost of a training so far."""

    seconds: float = 0.0  # wall clock time of the training loop, including saving
    tokens: int = 0
    padded_tokens: int = 0  # tokens including padding
    trained_tokens: int = 0  # tokens with a label
    skipped_steps: int = 0  # steps of fp16 that changed nothing, because a gradient was not finite


class Meter:
    """Counts tokens and seconds. It is stored with each checkpoint, so a resumed training continues to count."""

    def __init__(self, totals: Totals | None = None) -> None:
        self._totals = totals or Totals()
        self._pending: list[torch.Tensor] = []
        self._since = time.perf_counter()
        self._window = replace(self._totals)

    @classmethod
    def load(cls, checkpoint: Path) -> "Meter":
        return cls(Totals(**json.loads((checkpoint / METER).read_text(encoding="utf-8"))))

    def save(self, checkpoint: Path) -> None:
        self._tick()
        (checkpoint / METER).write_text(json.dumps(asdict(self.totals)), encoding="utf-8")

    def start(self) -> None:
        """Start the clock; loading and preparation before it do not count."""
        self._since = time.perf_counter()

    @property
    def totals(self) -> Totals:
        """Everything counted so far; on a GPU this waits for the batches that are being computed."""
        for counts in self._pending:
            for name, count in zip(("tokens", "padded_tokens", "trained_tokens"), counts.tolist(), strict=True):
                setattr(self._totals, name, getattr(self._totals, name) + count)
        self._pending.clear()
        return self._totals

    def count(
        self, inputs: dict[str, Any], sum_over: Callable[[torch.Tensor], torch.Tensor], padded: int = 0, blank: int = 0
    ) -> torch.Tensor:
        """Count one batch, [rows, length], without waiting for the GPU, and return its tokens with a label.

        `sum_over` adds the counts of all processes. `padded` are the tokens including padding, if more are added after
        the collator; `blank` are those of blank rows, which count as padding.
        """
        labels, given = inputs["labels"], inputs["input_ids"].numel()
        # Made on the device of the labels: copying a number to a GPU waits until all its pending work is done.
        real = inputs["attention_mask"].sum() if "attention_mask" in inputs else labels.new_full((), given)
        counts = [real - blank, labels.new_full((), padded or given), (labels != IGNORE).sum()]
        self._pending.append(sum_over(torch.stack(counts)))
        return self._pending[-1][2]

    def skip(self, step: int) -> None:
        """Count a step that fp16's scaler skipped. A few are normal, most at the start, while it finds its scale.

        Raises:
            UserError: they are too many.
        """
        self._totals.skipped_steps += 1
        if self._totals.skipped_steps > SKIPPED_MOST + SKIPPED_SHARE * step:
            raise UserError(
                f"model.precision=fp16: {self._totals.skipped_steps} of {step} steps were skipped, because their "
                "gradients were not finite; set model.precision=fp32 (or bf16, if the GPU has it), or lower "
                "trainer.learning_rate"
            )

    def rates(self) -> dict[str, float]:
        """Return tokens per second since the last call, without and with padding, and the peak memory in GB."""
        self._tick()
        totals, window = self.totals, self._window
        seconds = max(totals.seconds - window.seconds, 1e-9)
        self._window = replace(totals)
        return {
            "tokens_per_second": (totals.tokens - window.tokens) / seconds,
            "padded_tokens_per_second": (totals.padded_tokens - window.padded_tokens) / seconds,
            "peak_memory_gb": peak_memory_bytes() / 1e9,
        }

    def _tick(self) -> None:
        totals = self.totals  # waits for the GPU, whose time counts
        now = time.perf_counter()
        totals.seconds += now - self._since
        self._since = now


def peak_memory_bytes() -> int:
    """Return the peak memory: of the GPU as PyTorch allocated it, or of the process where there is no GPU."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kibibytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def replay(path: Path, on_log: OnLog) -> None:
    """Pass the lines of metrics.jsonl on again after a kill; a tracker skips the steps that it has."""
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        with suppress(ValueError, KeyError, AttributeError):  # a broken line
            metrics = json.loads(line)
            step = metrics.pop("step")
            on_log(_tracked(metrics), step)


def _tracked(metrics: dict[str, float]) -> dict[str, float]:
    """Return the names under which a line is tracked: those of training get a prefix, `eval/loss` has one."""
    return {key if "/" in key else f"train/{key}": value for key, value in metrics.items()}


class Curves:
    """Adds throughput to the trainer's logs and passes them on to `metrics.jsonl`, the log and the tracker."""

    def __init__(self, path: Path, meter: Meter, on_log: OnLog, skips_steps: bool = False) -> None:
        """`skips_steps` tells whether a step without finite gradients changes nothing (fp16), see `Meter.skip`."""
        self.path, self.meter, self.on_log, self.skips_steps = path, meter, on_log, skips_steps
        self.last_loss: float | None = None

    def save(self, checkpoint: Path) -> None:
        if self.path.exists():
            shutil.copyfile(self.path, checkpoint / CURVES)

    def rewind(self, step: int, checkpoint: Path | None = None) -> None:
        """Return to the lines of a checkpoint, or remove those after its step, and pass them on again.

        The steps after it will be repeated.
        """
        source = checkpoint / CURVES if checkpoint is not None else self.path
        source = source if source.exists() else self.path  # older checkpoints hold no lines
        if not self.path.exists() and not source.exists():
            return

        def step_of(line: str) -> float:
            try:
                return int(json.loads(line)["step"])
            except (ValueError, KeyError, TypeError):  # a kill cut the line short
                return math.inf

        text = source.read_text(encoding="utf-8", errors="replace") if step else ""
        lines = [line for line in text.splitlines() if step_of(line) <= step]
        write_text(self.path, "".join(f"{line}\n" for line in lines))  # atomic: a kill must not lose earlier lines
        if lines:
            self.last_loss = json.loads(lines[-1])["loss"]
        replay(self.path, self.on_log)

    def add(self, logs: dict[str, Any], step: int) -> None:
        """Take one log of the trainer.

        Raises:
            UserError: the loss is not finite, or the gradients, which the weights now are not either.
        """
        if "loss" not in logs:  # transformers' summary at the end, which run.json has too
            return
        loss, norm = float(logs["loss"]), float(logs.get("grad_norm", 0.0))
        fatal = {"loss": loss} if self.skips_steps else {"loss": loss, "norm of the gradients": norm}
        for name, value in fatal.items():
            if not math.isfinite(value):
                raise UserError(
                    f"trainer.learning_rate: the {name} became {value} at step {step}; lower it, or raise "
                    "trainer.warmup_steps"
                )
        self.last_loss = loss
        metrics = {RENAMED.get(key, key): float(value) for key, value in logs.items() if key not in OMITTED}
        metrics = {key: value for key, value in metrics.items() if math.isfinite(value)}  # a skipped step has no norm
        metrics |= self.meter.rates()
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")
        log.info(
            "step %d: loss %.4f, learning rate %.2e, %.0f tokens/s (%.0f with padding), %.1f GB",
            *(step, loss, metrics.get("learning_rate", 0.0), metrics["tokens_per_second"]),
            *(metrics["padded_tokens_per_second"], metrics["peak_memory_gb"]),
        )
        self.on_log(_tracked(metrics), step)
