"""The arguments of TRL come from the config, never from the defaults of a library."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from trl import SFTConfig

from tests.training.conftest import settings
from tometune.config.root import Config
from tometune.training import trainer as module
from tometune.training.steps import Step
from tometune.training.trainer import arguments

DEFAULTS = {
    **{"seed": 3407, "data_seed": 3407, "learning_rate": 5e-5, "per_device_train_batch_size": 4, "warmup_steps": 0.1},
    **{"gradient_accumulation_steps": 2, "weight_decay": 0.5, "optim": "adamw_8bit", "lr_scheduler_type": "cosine"},
    **{"max_grad_norm": 0.1, "adam_beta2": 0.9, "adam_epsilon": 1e-4, "num_train_epochs": 9, "logging_steps": 3},
    **{"logging_nan_inf_filter": True, "save_steps": 9, "max_length": 11, "packing": True, "padding_free": True},
    **{"loss_type": "dft", "neftune_noise_alpha": 5.0, "label_smoothing_factor": 0.1, "completion_only_loss": True},
    **{"remove_unused_columns": True, "dataloader_drop_last": True, "gradient_checkpointing": True},
    **{"use_liger_kernel": True, "train_sampling_strategy": "sequential", "average_tokens_across_devices": False},
    **{"auto_find_batch_size": True, "disable_tqdm": False},
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
