"""A base model is kept between the runs of a process, unless a run changed it."""

import hashlib

import pytest

from tests.conftest import Run
from tometune.config.model import LoraConfig, ModelConfig, Quantization, Weights
from tometune.models.base_models import BaseModels, state_of
from tometune.models.load import add_adapter
from tometune.models.source import locate


@pytest.fixture
def source(tmp_path):
    return locate(ModelConfig(name="tiny", id="tiny", weights=Weights.random, quantization=Quantization.none), tmp_path)


def test_kept_without_its_adapter_unless_it_changed(source):
    models = BaseModels()
    first = models.load(source)
    before = state_of(first)
    models.keep(add_adapter(first, LoraConfig(), 0), source, before)
    again = models.load(source)
    assert again is first
    assert state_of(again) == before
    changed = add_adapter(again, LoraConfig(), 0)
    again.model.layers[0].mlp.up_proj.base_layer.weight.data += 1
    models.keep(changed, source, before)
    assert models.load(source) is not first
    again.model.layers[0].mlp.up_proj.register_forward_hook(print)
    models.keep(again, source, before)
    assert models.load(source) is not again


@pytest.mark.whole
def test_a_later_run_is_the_same_as_one_alone(run_verb: Run, tmp_path):
    """Also after TRL's trainer, which patches the model's forward pass and changes its configs."""
    words = ["-m", "+experiment=smoke", "trainer.max_steps=2", f"paths.multirun={tmp_path}"]
    both = run_verb("train", *words, "sweep.name=both", "seed=0,1")
    assert both.stderr.count("is loaded already") == 1, both.stderr
    alone = run_verb("train", *words, "sweep.name=alone", "seed=1")
    assert "is loaded already" not in alone.stderr, alone.stderr
    (one,), (other,) = (list((tmp_path / name).glob("*-s1-*/adapter/*.safetensors")) for name in ("both", "alone"))
    assert hashlib.sha256(one.read_bytes()).digest() == hashlib.sha256(other.read_bytes()).digest()
