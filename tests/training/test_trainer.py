"""The trainer's arguments, which come from the config, and its progress bar."""

import dataclasses
import logging
import os
import pty
import re
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from trl import SFTConfig

from tests.training.conftest import settings
from tometune.common.progress import StderrHandler
from tometune.config.root import Config
from tometune.training import trainer as module
from tometune.training.metrics import Meter
from tometune.training.steps import Step
from tometune.training.trainer import StepCallback, arguments

DEFAULTS = {
    **{"seed": 3407, "data_seed": 3407, "learning_rate": 5e-5, "per_device_train_batch_size": 4, "warmup_steps": 0.1},
    **{"gradient_accumulation_steps": 2, "weight_decay": 0.5, "optim": "adamw_8bit", "lr_scheduler_type": "cosine"},
    **{"max_grad_norm": 0.1, "adam_beta2": 0.9, "adam_epsilon": 1e-4, "num_train_epochs": 9, "logging_steps": 3},
    **{"logging_nan_inf_filter": True, "save_steps": 9, "max_length": 11, "packing": True, "padding_free": True},
    **{"loss_type": "dft", "neftune_noise_alpha": 5.0, "label_smoothing_factor": 0.1, "completion_only_loss": True},
    **{"remove_unused_columns": True, "dataloader_drop_last": True, "gradient_checkpointing": True},
    **{"use_liger_kernel": True, "train_sampling_strategy": "sequential", "average_tokens_across_devices": False},
    **{"auto_find_batch_size": True, "disable_tqdm": False, "router_aux_loss_coef": 0.001},
}
"""Defaults after importing Unsloth, and others that would be noticed."""
STEP = Step(2, 2)


def given(config: Config, step: Step = STEP, checkpointing: bool = False, dtype: Any = torch.float32) -> Any:
    training: Any = SimpleNamespace(inputs=config, dtype=dtype, checkpoints=Path("x"), unsloth=False)
    return arguments(training, step, checkpointing)


def test_no_default_of_a_library_reaches_the_training(monkeypatch):
    ours = given(settings())
    assert all(getattr(ours, name) != value for name, value in DEFAULTS.items())
    fields = [(name, Any, value) for name, value in DEFAULTS.items()]
    monkeypatch.setattr(module, "Arguments", dataclasses.make_dataclass("Changed", fields, bases=(SFTConfig,)))
    theirs = given(settings())
    assert {name: getattr(theirs, name) for name in DEFAULTS} == {name: getattr(ours, name) for name in DEFAULTS}


def test_settings_are_arguments_of_trl():
    values = {
        **{"weight_decay": 0.5, "max_grad_norm": 0.125, "num_train_epochs": 3.5, "max_length": 33, "loss_type": "nll"},
        **{"dataloader_num_workers": 2, "logging_steps": 5, "save_steps": 7, "save_total_limit": 5},
        **{"learning_rate": 3e-3, "lr_scheduler_type": "constant", "optim": "sgd", "warmup_steps": 4},
    }
    config = settings(**values)
    config.seeds = dataclasses.replace(config.seeds, order=5, adapter=6)
    found = given(config)
    assert {name: getattr(found, name) for name in values} == values
    assert (found.max_steps, found.data_seed, found.seed) == (6, 5, 6)
    assert (found.per_device_train_batch_size, found.gradient_accumulation_steps) == (2, 1)
    found = given(settings(max_steps=None), Step(6, 2), checkpointing=True)
    assert (found.gradient_accumulation_steps, found.gradient_checkpointing, found.max_steps) == (3, True, -1)
    for dtype, flags in ((torch.float32, (0, 0)), (torch.bfloat16, (1, 0)), (torch.float16, (0, 1))):
        found = given(settings(), dtype=dtype)
        assert (found.bf16, found.fp16) == flags


def test_a_process_has_one_gpu_at_most(monkeypatch):
    """With two, transformers would double the batch and copy the model."""
    monkeypatch.setattr(SFTConfig, "n_gpu", 2)
    ours = given(settings())
    assert (ours.n_gpu, ours.train_batch_size) == (1, STEP.micro_batch)


def test_log_lines_appear_above_the_bar(monkeypatch):
    ours, theirs = pty.openpty()
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        log = logging.Logger("bar")
        log.addHandler(StderrHandler())
        bar, state, control = StepCallback(Meter()), SimpleNamespace(max_steps=2, global_step=0), SimpleNamespace()
        bar.on_train_begin(None, state, control)
        shown = ""
        for state.global_step in (1, 2):
            bar.on_step_end(SimpleNamespace(eval_steps=None), state, control)
            bar.on_log(None, state, control, logs={"loss": 1.5})
            log.info("line %d", state.global_step)
            time.sleep(0.3)
            shown += os.read(ours, 4096).decode()
        bar.on_train_end(None, state, control)
        monkeypatch.undo()
    uncoloured = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    lines = [part.strip() for part in re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "\r", uncoloured))]
    assert [line for line in lines if line.startswith("line")] == ["line 1", "line 2"]
    assert any(line.startswith("training") and "2/2" in line and "loss 1.500" in line for line in lines)
    assert control.should_log


def test_there_is_no_bar_without_a_terminal(capfd):
    bar, state = StepCallback(Meter()), SimpleNamespace(max_steps=3, global_step=1)
    control: Any = SimpleNamespace()
    for event in (bar.on_train_begin, bar.on_step_end, bar.on_train_end):
        event(SimpleNamespace(eval_steps=None), state, control)
    assert capfd.readouterr() == ("", "")
    assert not vars(control), "neither the last step nor a signal"
