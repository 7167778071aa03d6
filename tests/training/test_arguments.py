"""What reaches TRL: the settings of the config, and no default of a library."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from trl import SFTConfig

from tests.training.conftest import Train, settings
from tometune.training import arguments as module
from tometune.training.arguments import arguments
from tometune.training.steps import Step


@dataclass
class UnslothsDefaults(SFTConfig):
    """The defaults that importing Unsloth leaves behind, and a few that would show."""

    seed: int = 3407
    data_seed: int | None = 3407
    learning_rate: float = 5e-5
    per_device_train_batch_size: int = 4
    gradient_accumulation_steps: int = 2
    warmup_steps: float = 0.1
    weight_decay: float = 0.5
    optim: str = "adamw_8bit"
    lr_scheduler_type: str = "cosine"
    max_grad_norm: float = 0.1
    adam_beta2: float = 0.9
    adam_epsilon: float = 1e-4
    num_train_epochs: float = 9
    logging_steps: float = 3
    logging_nan_inf_filter: bool = True
    save_steps: float = 9
    max_length: int | None = 11
    packing: bool = True
    padding_free: bool = True
    loss_type: str = "dft"
    neftune_noise_alpha: float | None = 5.0
    label_smoothing_factor: float = 0.1
    completion_only_loss: bool | None = True
    remove_unused_columns: bool | None = True
    dataloader_drop_last: bool = True
    gradient_checkpointing: bool = True
    use_liger_kernel: bool = True
    train_sampling_strategy: str = "sequential"
    average_tokens_across_devices: bool = False
    auto_find_batch_size: bool = True
    disable_tqdm: bool | None = False


def test_no_default_of_a_library_reaches_the_training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    names = set(UnslothsDefaults.__annotations__)
    ours = arguments(settings(), torch.float32, tmp_path, Step(2, 2), False)
    assert all(getattr(ours, name) != getattr(UnslothsDefaults, name) for name in names), "each would show"
    monkeypatch.setattr(module, "Arguments", UnslothsDefaults)
    theirs = arguments(settings(), torch.float32, tmp_path, Step(2, 2), False)
    assert {name: getattr(theirs, name) for name in names} == {name: getattr(ours, name) for name in names}


@pytest.mark.parametrize(
    ("key", "value", "attribute"),
    [
        ("weight_decay", 0.5, "weight_decay"),
        ("max_grad_norm", 0.125, "max_grad_norm"),
        ("num_train_epochs", 3.5, "num_train_epochs"),
        ("max_length", 33, "max_length"),
        ("loss_type", "nll", "loss_type"),
        ("dataloader_num_workers", 2, "dataloader_num_workers"),
        ("logging_steps", 5, "logging_steps"),
        ("save_steps", 7, "save_steps"),
        ("save_total_limit", 5, "save_total_limit"),
    ],
)
def test_a_setting_is_an_argument_of_trl(key: str, value: Any, attribute: str, tmp_path: Path) -> None:
    given = arguments(settings(**{key: value}), torch.float32, tmp_path, Step(2, 2), False)
    assert getattr(given, attribute) == value


def test_max_steps_and_seeds_reach_trl(tmp_path: Path) -> None:
    config = settings()
    config.seeds = dataclasses.replace(config.seeds, order=5, adapter=6)
    given = arguments(config, torch.float32, tmp_path, Step(2, 2), False)
    assert (given.max_steps, given.data_seed, given.seed) == (6, 5, 6)
    assert (given.per_device_train_batch_size, given.gradient_accumulation_steps) == (2, 1)
    assert arguments(settings(), torch.float32, tmp_path, Step(6, 2), True).gradient_accumulation_steps == 3
    assert arguments(settings(), torch.float32, tmp_path, Step(6, 2), True).gradient_checkpointing
    assert arguments(settings(max_steps=None), torch.float32, tmp_path, Step(2, 2), False).max_steps == -1


@pytest.mark.parametrize(("dtype", "flags"), [("float32", (0, 0)), ("bfloat16", (1, 0)), ("float16", (0, 1))])
def test_the_arithmetic_follows_the_models_dtype(dtype: str, flags: tuple[int, int], tmp_path: Path) -> None:
    given = arguments(settings(), getattr(torch, dtype), tmp_path, Step(2, 2), False)
    assert (given.bf16, given.fp16) == flags


def test_rate_optimiser_and_schedule_are_those_of_the_config(train: Train, tmp_path: Path) -> None:
    linear = train(tmp_path / "linear", settings(weight_decay=0.25))
    optimiser = linear.trainer.optimizer.optimizer
    assert type(optimiser) is torch.optim.AdamW
    assert {group["weight_decay"] for group in optimiser.param_groups if group["params"]} == {0.25}
    rates = [line["learning_rate"] for line in linear.curve]
    assert rates == pytest.approx([0, 0.005, 0.01, 0.0075, 0.005, 0.0025])
    constant = settings(learning_rate=3e-3, lr_scheduler_type="constant", optim="sgd", warmup_steps=0)
    other = train(tmp_path / "constant", constant)
    assert type(other.trainer.optimizer.optimizer) is torch.optim.SGD
    assert [line["learning_rate"] for line in other.curve] == pytest.approx([3e-3] * 6)
