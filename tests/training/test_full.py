"""`lora=none`: every weight is trained, in float32 whatever the arithmetic, and resumes bit for bit."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.training.conftest import Fitted, Train, settings
from tometune.common.errors import UserError
from tometune.config.model import LoraConfig, Precision, Weights
from tometune.config.root import Config
from tometune.models.load import author_configs, check_unquantised, load_model
from tometune.models.source import as_saved, locate
from tometune.models.tokenizer import load_tokenizer
from tometune.training import checkpoints

WEIGHTS = "model.safetensors"


def full(precision: Precision = Precision.fp32, **trainer: Any) -> Config:
    config = settings(**{"learning_rate": 1e-3} | trainer)
    return replace(config, lora=LoraConfig(enabled=False), model=replace(config.model, precision=precision))


@pytest.fixture(scope="module")
def fitted(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    return train(tmp_path_factory.mktemp("full"), full(save_total_limit=9, learning_rate=3e-3))


@pytest.fixture
def base(cache: Path) -> Any:
    return load_model(locate(full().model, cache))


def saved(fitted: Fitted) -> dict[str, torch.Tensor]:
    return load_file(fitted.folder / "model" / WEIGHTS)


def test_every_weight_changes_and_the_model_is_saved_as_its_author_wrote_it(fitted, base, cache):
    before = dict(base.named_parameters())
    assert fitted.losses[-1] < 0.95 * fitted.losses[0]
    after = saved(fitted)
    assert after.keys() == before.keys() - {"lm_head.weight"}, "the head is the embedding"
    assert not [name for name, weight in after.items() if torch.equal(weight, before[name])]
    assert not list(fitted.folder.glob(".*"))
    folder, source = fitted.folder / "model", locate(as_saved(full().model, fitted.folder), cache)
    trained = dict(fitted.trainer.model.named_parameters())
    assert all(torch.equal(weight, trained[name]) for name, weight in load_model(source).named_parameters())
    assert load_tokenizer(source).chat_template == load_tokenizer(locate(full().model, cache)).chat_template
    for name in ("config.json", "generation_config.json"):
        said, was = (json.loads((Path(place) / name).read_text()) for place in (folder, base.config._name_or_path))
        assert said == was, "the trainer's own settings are not the model's"
    assert {path.stat().st_mode for path in folder.glob("*.json")} == {(folder / WEIGHTS).stat().st_mode}


def test_weights_are_float32_under_16_bit_arithmetic_and_saved_in_16(train, tmp_path):
    """In bfloat16 itself a step of 1e-5 of a weight would be rounded away."""
    slow: dict[str, Any] = {"learning_rate": 1e-5, "lr_scheduler_type": "constant", "warmup_steps": 0}
    fitted = train(tmp_path, full(Precision.bf16, **slow))
    assert fitted.trainer.args.bf16
    first, kept = (load_file(tmp_path / "checkpoints" / f"checkpoint-{step}" / WEIGHTS) for step in (4, 6))
    assert {weight.dtype for weight in kept.values()} == {torch.float32}
    assert not [name for name, weight in kept.items() if torch.equal(weight, first[name])], "small steps are kept"
    assert {weight.dtype for weight in saved(fitted).values()} == {torch.bfloat16}
    assert all(torch.equal(weight, kept[name].bfloat16()) for name, weight in saved(fitted).items())
    assert json.loads((tmp_path / "model" / "config.json").read_text())["dtype"] == "bfloat16"


def test_it_resumes_bit_for_bit(fitted, train, tmp_path):
    shutil.copytree(fitted.folder / "checkpoints", tmp_path / "checkpoints")
    shutil.copy(fitted.folder / "metrics.jsonl", tmp_path)
    (tmp_path / "checkpoints" / "checkpoint-6" / WEIGHTS).unlink()  # killed while it was saved
    again = train(tmp_path, full(save_total_limit=9, learning_rate=3e-3))
    assert len(again.batches) < len(fitted.batches)
    assert (tmp_path / "model" / WEIGHTS).read_bytes() == (fitted.folder / "model" / WEIGHTS).read_bytes()
    assert again.losses == fitted.losses


def test_a_model_that_could_not_be_saved_is_rejected_at_the_start(tmp_path, base, cache):
    mine = tmp_path / "mine"
    shutil.copytree(base.config._name_or_path, mine)
    model = replace(full().model, id=str(mine), weights=Weights.pretrained)
    assert author_configs(locate(model, cache))[0].vocab_size > 0
    (mine / "generation_config.json").write_text('{"do_sample": false, "temperature": 0.6}')
    with pytest.raises(UserError, match=r"model\.id=.*mine: lora=none saves .* `temperature`.*fix that file"):
        author_configs(locate(model, cache))


def test_quantised_files_are_rejected():
    with pytest.raises(UserError, match=r"model\.id=mine: its files hold quantised weights, which lora=none cannot"):
        check_unquantised(SimpleNamespace(hf_quantizer=object()), "mine")
    check_unquantised(nn.Linear(2, 2), "mine")


def test_a_disk_that_is_too_small_is_reported_before_the_first_step(train, tmp_path, monkeypatch, base):
    weights = sum(weight.numel() for weight in base.parameters())
    needed = 3 * 12 * weights + 4 * weights  # two checkpoints, one more while it is saved, and the model
    usage = shutil.disk_usage(tmp_path)._replace(free=needed - 1)
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match=r"trainer\.save_total_limit=2: the checkpoints and .* take about 0\.0"):
        train(tmp_path, full())
    assert not list((tmp_path / "checkpoints").iterdir())
