"""TRL's trainer: its arguments, and the trainer itself with the meter, the curves and complete checkpoints."""

import json
import math
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import rotate_checkpoints
from trl import SFTConfig, SFTTrainer

from tometune.common.distributed import gather, is_first, share_weights, sum_gradients
from tometune.common.files import disk_errors, sync_folder
from tometune.common.progress import Bar
from tometune.data.encoder import IGNORE
from tometune.evaluation.scoring import evaluating
from tometune.models.packed_attention import training_attention
from tometune.training.batches import FullBatches, RowsAndBlank, Training
from tometune.training.checkpoints import SAVING
from tometune.training.cuda_graph import PassGraph
from tometune.training.metrics import PENDING, Curves, Meter
from tometune.training.steps import Step

PER_TOKEN = ("entropy", "mean_token_accuracy")  # metrics of TRL that are means over tokens with a label

SAME_NAMES = (
    *("learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "optim", "max_grad_norm"),
    *("num_train_epochs", "max_length", "dataloader_num_workers", "logging_steps", "eval_steps", "save_steps"),
    "save_total_limit",
)
"""Settings of the group `trainer` that TRL has under the same names."""


class Arguments(SFTConfig):
    """`trl.SFTConfig`; with several processes on CPUs its device is `cpu`, and a process has one GPU at most."""

    @property
    def device(self) -> torch.device:
        """The device. accelerate says `cpu:0`, where torch.load cannot put an optimiser's states."""
        device: torch.device = super().device
        return torch.device("cpu") if device.type == "cpu" else device

    @property
    def n_gpu(self) -> int:
        """The GPUs of this process. With several, transformers would make larger batches and copies of the model."""
        return min(1, int(super().n_gpu))


def arguments(training: Training, step: Step, checkpointing: bool) -> Arguments:
    """Return TRL's arguments; all that matter are set, because importing Unsloth changes the defaults."""
    trainer, seeds, dtype = training.inputs.trainer, training.inputs.seeds, training.dtype
    return Arguments(
        **{name: getattr(trainer, name) for name in SAME_NAMES},
        output_dir=str(training.checkpoints),
        adam_beta1=0.9,
        adam_beta2=0.999,
        adam_epsilon=1e-8,
        max_steps=trainer.max_steps or -1,
        per_device_train_batch_size=step.micro_batch,
        gradient_accumulation_steps=step.accumulation,
        gradient_checkpointing=checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if checkpointing else None,
        bf16=dtype is torch.bfloat16,
        fp16=dtype is torch.float16,
        use_cpu=not torch.cuda.is_available(),
        seed=seeds.adapter,
        data_seed=seeds.order,
        train_sampling_strategy="random",
        packing=False,  # The rows are packed already, and our collator keeps conversations apart. TRL only accepts a
        padding_free=False,  # collator if both of these are off.
        loss_type="nll" if training.unsloth else trainer.loss_type,  # Unsloth has a fused loss of its own
        router_aux_loss_coef=0.0,  # of experts; TRL adds it per pass, so steps would depend on the micro-batch
        use_liger_kernel=False,
        label_smoothing_factor=0.0,
        neftune_noise_alpha=None,
        average_tokens_across_devices=True,
        auto_find_batch_size=False,
        completion_only_loss=False,
        assistant_only_loss=False,  # the labels are made and checked by tometune.data.tokens
        dataset_kwargs={"skip_prepare_dataset": True},
        eval_packing=False,
        activation_offloading=False,
        remove_unused_columns=False,
        dataloader_drop_last=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        # Batches are copied while the GPU works; a copy that waits for it would leave it idle afterwards.
        accelerator_config={"non_blocking": torch.cuda.is_available()},
        logging_strategy="steps",
        logging_first_step=True,
        logging_nan_inf_filter=False,
        eval_strategy="no",  # `eval/loss` has code of its own
        save_strategy="steps",
        report_to="none",
        disable_tqdm=True,
        push_to_hub=False,
    )


class MeteredTrainer(SFTTrainer):
    """`trl.SFTTrainer` on rows that are already tokenised and labelled."""

    saving_to: str | None = None  # while a checkpoint is written: its folder's parent
    pending: dict[str, Any] | None = None  # what a checkpoint has of the steps since the last log line, see `PENDING`

    def __init__(
        self,
        *,
        curves: Curves,
        fused_loss: bool,
        graph: PassGraph | None,
        loss_rows: Sequence[dict[str, Any]],
        kernel: str | None,
        **keywords: Any,
    ) -> None:
        """`kernel` is the attention without the graph, if there is one."""
        super().__init__(**keywords)
        self.loss_rows, self.kernel = loss_rows, kernel
        self.meter, self.curves, self.fused_loss, self.graph = curves.meter, curves, fused_loss, graph
        self.trained_tokens: list[torch.Tensor] = []  # of each pass since the last log, over all processes
        # TRL sums token counts with `gather_for_metrics`, which drops some processes' counts in an epoch's last step.
        self.accelerator.gather_for_metrics = self.accelerator.gather
        if graph is not None:
            # `sum_gradients` replaces DistributedDataParallel. That keeps nodes of the backward pass that were made on
            # another stream, and a graph cannot be captured with them.
            self.accelerator.prepare_model = partial(self.accelerator.prepare_model, evaluation_mode=True)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return the batches of this process; those of the last step of an epoch are filled with blank rows.

        accelerate would fill them with rows from the beginning of the epoch, which one process would not train on.
        """
        if self.args.world_size == 1:
            return super().get_train_dataloader()
        rows = RowsAndBlank(self.train_dataset)
        size = self._train_batch_size
        loader = self._get_dataloader(rows, "Training", size, self._get_train_sampler, is_training=True)
        share = loader.batch_sampler  # accelerate's, which deals out the batches
        share.batch_sampler = FullBatches(share.batch_sampler.sampler, size, self.args.world_size, len(rows))
        return loader

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Any:
        """Count the batch over all processes, then run forward and backward pass; returns the loss."""
        padded, blank = self.graph.tokens * len(inputs["parts"]) if self.graph else 0, inputs.pop("blank", 0)

        def sum_over(counts: torch.Tensor) -> Any:
            return self.accelerator.reduce(counts.to(self.args.device))

        self.trained_tokens.append(self.meter.count(inputs, sum_over, padded, blank))
        if self.graph is None:
            return super().training_step(model, inputs, num_items_in_batch)
        loss = self.graph(self._prepare_inputs(inputs), num_items_in_batch)
        if self.args.world_size == 1:
            return loss
        if self.accelerator.sync_gradients:  # the last pass of a step
            sum_gradients(self.graph.weights)
        return loss * self.args.world_size  # as transformers does, which logs the mean over the processes

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *arguments: Any, **keywords: Any) -> Any:
        """Return the loss, without TRL's metrics over logits if the model has a fused loss (Unsloth's)."""
        if not self.fused_loss:
            return super().compute_loss(model, inputs, *arguments, **keywords)
        return Trainer.compute_loss(self, model, inputs, *arguments, **keywords)

    def full_pass(self, rows: list[dict[str, Any]]) -> None:
        """Run one forward and backward pass over rows outside of the training loop, to see how much memory it takes."""
        if self.args.gradient_checkpointing:
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        # Processes try different sizes, so none may wait for another one; TRL's counts do not matter here.
        self.accelerator.gather_for_metrics = lambda counts: counts
        try:
            self.model.train()
            inputs = self._prepare_inputs(self.data_collator(rows))
            count = (inputs["labels"] != IGNORE).sum()
            if self.graph is not None:
                self.graph.run_once(inputs, count)
                return
            dtype = torch.float16 if self.args.fp16 else torch.bfloat16
            with torch.autocast(self.args.device.type, dtype, enabled=self.args.bf16 or self.args.fp16):
                loss = self.compute_loss(self.model, inputs, num_items_in_batch=count)
            loss.backward()
        finally:
            if self.args.gradient_checkpointing:
                self.model.gradient_checkpointing_disable()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as transformers does, and add the metrics to the curves.

        TRL's metrics are means over the tokens of a pass. Their mean over passes would depend on the micro-batch, so
        each pass counts by its tokens.
        """
        weights, self.trained_tokens = [int(count) for count in self.trained_tokens], []
        metrics = self._metrics["train"]
        for name in PER_TOKEN:
            if metrics.get(name) and any(weights):
                total = sum(value * weight for value, weight in zip(metrics[name], weights, strict=True))
                metrics[name] = [total / sum(weights)]
        super().log(logs, start_time)
        found = dict[str, float]()
        if self.loss_rows and "loss" in logs and _is_due(self.args, self.state):
            found["eval/loss"] = self.eval_loss()
        if self.is_world_process_zero():
            self.curves.add({**logs, **found, "epoch": self.epochs}, self.state.global_step)

    def eval_loss(self) -> float:
        """Return the mean NLL per trained token on `loss_rows`, whatever `trainer.loss_type` is.

        No random stream advances, because dropout is off. The layers run uncompiled: each new shape would otherwise be
        compiled. Every process computes all of it, since the loss of TRL waits for all of them.
        """
        total, trained, start = 0.0, 0, 0
        loss_of_training = self.compute_loss_func  # type: ignore[has-type]
        self.compute_loss_func = None
        at_once = self.args.per_device_train_batch_size * self.args.max_length  # tokens that fit while training
        eager = torch.compiler.set_stance("force_eager") if self.graph else nullcontext()
        with torch.no_grad(), evaluating(self.model), eager, training_attention(self.model, self.kernel):
            while start < len(self.loss_rows):
                count = max(1, at_once // len(self.loss_rows[start]["labels"]))
                batch = self.data_collator(list(self.loss_rows[start : start + count]))
                inputs = self._prepare_inputs({name: batch[name] for name in batch if name not in ("parts", "blank")})
                items = (inputs["labels"] != IGNORE).sum()
                loss = self.compute_loss(self.model, inputs, num_items_in_batch=items)
                total += float(loss) * int(items) / self.args.world_size  # which transformers multiplies it by
                trained += int(items)
                start += count
        self.compute_loss_func = loss_of_training
        self._metrics["eval"].clear()
        return total / trained

    @property
    def epochs(self) -> float:
        """Passes over the rows so far. That of transformers depends on the micro-batch."""
        arguments, rows = self.args, len(self.train_dataset)
        per_step: int = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
        # The last step of an epoch may have fewer rows.
        whole, rest = divmod(int(self.state.global_step), math.ceil(rows / per_step))
        return whole + rest * per_step / rows

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save a whole checkpoint or none, with the meter and the curves, without TRL's model card.

        It is written in another folder, brought to the disk, and renamed.
        """
        checkpoints, name, first = Path(self.args.output_dir), f"checkpoint-{self.state.global_step}", is_first()
        saving, pending = checkpoints / SAVING, self._since_last_log()
        try:
            with disk_errors(checkpoints):
                if first:
                    shutil.rmtree(saving, ignore_errors=True)
                    (saving / name).mkdir(parents=True)
                    (saving / name / PENDING).write_text(json.dumps(pending), encoding="utf-8")
                    self.meter.save(saving / name)
                    self.curves.save(saving / name)
                self.accelerator.wait_for_everyone()
                self.saving_to = str(saving)
                Trainer._save_checkpoint(self, model, trial)
                self.accelerator.wait_for_everyone()
                if first:
                    sync_folder(saving / name)
                    shutil.rmtree(checkpoints / name, ignore_errors=True)
                    (saving / name).replace(checkpoints / name)
                    sync_folder(checkpoints)
                    rotate_checkpoints(str(checkpoints), save_total_limit=self.args.save_total_limit)
        finally:
            self.saving_to = None
            if first:
                shutil.rmtree(saving, ignore_errors=True)  # half a checkpoint is useless and takes up space

    def _since_last_log(self) -> dict[str, Any]:
        """Return what the next log line needs from the steps since the last one."""
        loss = float(self.accelerator.gather(self._tr_loss).mean())  # over processes, as it is logged
        metrics = {name: [float(value) for value in values] for name, values in self._metrics["train"].items()}
        counts = [int(count) for count in self.trained_tokens]
        return {"loss": loss, "step": self._globalstep_last_logged, "metrics": metrics, "trained_tokens": counts}

    def _get_output_dir(self, trial: Any) -> str:
        return self.saving_to or str(super()._get_output_dir(trial))

    def _save_rng_state(self, output_dir: str) -> None:
        """Save the generators of all processes before the first process marks the checkpoint as complete."""
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()

    def _run_epoch(self, model: nn.Module, *arguments: Any, **keywords: Any) -> None:
        """Train an epoch, unless all steps are done.

        transformers would make one more step after resuming from the checkpoint of the last step. In every step it also
        goes through all modules of the model several times, to clip and reset gradients, which takes longer than a
        graph of a small model. Around a graph, it gets the trained weights alone.
        """
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        if self.pending is not None:
            self._tr_loss += self.pending["loss"]
            self._globalstep_last_logged = self.pending["step"]
            self._metrics["train"].update(self.pending["metrics"])
            self.trained_tokens = self.pending["trained_tokens"]
            self.pending = None
        if self.graph is not None:
            self.model.train()
            model = nn.ParameterList(self.graph.weights)
            share_weights(self.graph.weights)
        super()._run_epoch(model, *arguments, **keywords)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:  # noqa: ARG002 -- transformers' method
        """Return 0: nothing reads the sum, and transformers would go through the whole model to count."""
        return 0


def _is_due(args: Any, state: Any) -> bool:
    """Tell whether `eval/loss` is computed after this step."""
    return bool(args.eval_steps) and (state.global_step % args.eval_steps == 0 or state.global_step >= state.max_steps)


class StepCallback(TrainerCallback):
    """Stops after a signal, logs the last step, and shows a progress bar if standard error is a terminal."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self.signal = 0  # number of the signal that was received
        self.bar = Bar("training", None)
        self.loss = ""

    def _show(self, done: int, total: int | None = None) -> None:
        if self.bar.visible:  # the log has lines of its own
            self.bar.set(done, total, note=self.loss)

    def request_stop(self, number: int, _frame: FrameType | None) -> None:
        """Handle a signal: the current step is finished and a checkpoint is saved."""
        self.signal = number

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002 -- a callback's form
        self._show(state.global_step, state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        """Advance the bar, count a step that fp16 skipped, and tell the trainer what to do after this step."""
        self._show(state.global_step)
        if getattr(optimizer, "step_was_skipped", False):
            self.meter.skip(state.global_step)
        # The curves end with the last step, and a loss of nan is noticed. `eval/loss` belongs to a line of them.
        if state.global_step >= state.max_steps or _is_due(args, state):
            control.should_log = True
        self.signal = max(gather([self.signal]))  # all processes stop after the same step
        if self.signal:
            control.should_save = True
            control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:  # noqa: ARG002
        if logs and "loss" in logs:
            self.loss = f"loss {float(logs['loss']):.3f}"
            self._show(state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        self.bar.rich.stop()
