"""The trainer: TRL's, with our meter, our curves and our checkpoints."""

import shutil
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainerCallback
from trl import SFTConfig, SFTTrainer

from tometune.common.distributed import gather
from tometune.common.files import SaveError, disk_errors
from tometune.training.cuda_graph import PassGraph
from tometune.training.metrics import Curves, Meter


class Arguments(SFTConfig):
    """`trl.SFTConfig` whose device, of several processes on CPUs, is the CPU."""

    @property
    def device(self) -> torch.device:
        """The device of this process; accelerate says `cpu:0`, to which torch.load cannot bring an optimiser back."""
        device: torch.device = super().device
        return torch.device("cpu") if device.type == "cpu" else device


class MeteredTrainer(SFTTrainer):
    """`trl.SFTTrainer` on rows that are already tokenised and labelled."""

    def __init__(
        self,
        *arguments: Any,
        meter: Meter,
        curves: Curves,
        fused_loss: bool = False,
        graph: PassGraph | None = None,
        **keywords: Any,
    ) -> None:
        super().__init__(*arguments, **keywords)
        self.meter, self.curves, self.fused_loss, self.graph = meter, curves, fused_loss, graph

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Any:
        """Count the batch, of all processes, then make its pass: forward, backward; returns the loss."""
        padded = None if self.graph is None else self.graph.tokens * len(inputs["parts"])
        self.meter.count(inputs, lambda counts: self.accelerator.reduce(counts.to(self.args.device)), padded)
        if self.graph is None:
            return super().training_step(model, inputs, num_items_in_batch)
        model.train()
        return self.graph(self._prepare_inputs(inputs), num_items_in_batch)

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *arguments: Any, **keywords: Any) -> Any:
        """Return the loss; of a model that gives no logits (Unsloth's) without TRL's metrics over them."""
        if not self.fused_loss:
            return super().compute_loss(model, inputs, *arguments, **keywords)
        return Trainer.compute_loss(self, model, inputs, *arguments, **keywords)

    def full_pass(self, rows: list[dict[str, Any]]) -> None:
        """Make one forward and backward pass over rows, outside of the loop: what it leaves is the memory's peak.

        Raises:
            torch.OutOfMemoryError: the GPU ran out.
        """
        if self.args.gradient_checkpointing:
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        try:
            self.model.train()
            inputs = self._prepare_inputs(self.data_collator(rows))
            count = (inputs["labels"] != -100).sum()
            if self.graph is not None:
                self.graph.once(inputs, count)
                return
            dtype = torch.float16 if self.args.fp16 else torch.bfloat16
            with torch.autocast(self.args.device.type, dtype, enabled=self.args.bf16 or self.args.fp16):
                loss = self.compute_loss(self.model, inputs, num_items_in_batch=count)
            loss.backward()
        finally:
            if self.args.gradient_checkpointing:
                self.model.gradient_checkpointing_disable()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Pass the logs on to the curves, from the first process only."""
        super().log(logs, start_time)
        if self.is_world_process_zero():
            self.curves.add(logs, self.state.global_step)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save a checkpoint with the meter in it, and without the model card that TRL would write."""
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        try:
            with disk_errors(folder.parent):
                if self.is_world_process_zero():
                    folder.mkdir(parents=True, exist_ok=True)
                    self.meter.save(folder)  # before the trainer's state, whose presence says that all is there
                Trainer._save_checkpoint(self, model, trial)
        except SaveError:
            shutil.rmtree(folder, ignore_errors=True)  # half a checkpoint is of no use and takes up room
            raise

    def _save_rng_state(self, output_dir: str) -> None:
        """Save the generators of every process before the first one writes what says that all is there."""
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()

    def _run_epoch(self, *arguments: Any, **keywords: Any) -> None:
        """Train no further than the last step.

        After a resume from the checkpoint of the last step, transformers would make one step more before it looks.
        """
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*arguments, **keywords)
        else:
            self.control.should_training_stop = True


class LogLastStep(TrainerCallback):
    """Log the last step whatever `logging_steps` is: the curves end there, and a loss that is no number is noticed."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002 -- the callback's form
        """Ask the trainer to log."""
        if state.global_step >= state.max_steps:
            control.should_log = True


class StopAfterStep(TrainerCallback):
    """Once told to stop, finish the step, save a checkpoint and stop."""

    def __init__(self) -> None:
        self.signal = 0
        """Number of the signal that came; 0 is none."""

    def tell(self, number: int, _frame: FrameType | None) -> None:
        """Remember the signal."""
        self.signal = number

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002 -- the callback's form
        """Ask the trainer to save and stop, in all processes at the same step."""
        self.signal = max(gather([self.signal]))
        if self.signal:
            control.should_save = True
            control.should_training_stop = True
