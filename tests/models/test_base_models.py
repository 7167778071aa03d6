"""A base model is kept between the runs of a sweep in one process, unless a run or its files changed."""

from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from tests.models.conftest import TINY
from tometune.config.model import LoraConfig, Weights
from tometune.evaluation.engines.ragged import ragged_attention
from tometune.models.base_models import BaseModels
from tometune.models.load import add_adapter, load_model
from tometune.models.packed_attention import PER_CONVERSATION, training_attention
from tometune.models.source import locate
from tometune.training.cuda_graph import compiled_layers


@pytest.fixture
def models():
    made = BaseModels()
    with made.shared():
        yield made


def test_kept_without_its_adapter_and_dropped_after_the_sweep(source):
    models = BaseModels()
    with models.shared():
        first = models.load(source)
        before = {name: weight.clone() for name, weight in first.state_dict().items()}
        for _ in range(2):
            models.keep(add_adapter(first, LoraConfig(), 0))
            assert models.load(source) is first
        after = first.state_dict()
        assert list(after) == list(before)
        assert all(torch.equal(after[name], weight) for name, weight in before.items())
        models.keep(first)
    assert models._kept is None
    assert models.load(source) is not first


def test_nothing_is_kept_outside_of_a_sweep(source):
    """The process may go on to evaluate, export or chat, which loads models of its own."""
    models = BaseModels()
    first = models.load(source)
    models.keep(first)
    assert models._kept is None
    assert models.load(source) is not first


@contextmanager
def hooked(model):
    model.get_base_model().model.layers[0].mlp.register_forward_hook(print)
    yield


@contextmanager
def recomputed(model):
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    yield


@pytest.mark.parametrize(
    "used",
    [compiled_layers, lambda model: training_attention(model, PER_CONVERSATION), ragged_attention, recomputed, hooked],
)
def test_training_and_answering_leave_no_trace(models, source, used):
    first = models.load(source)
    tuned = add_adapter(first, LoraConfig(), 0)
    with used(tuned):
        pass
    models.keep(tuned)
    assert models.load(source) is first
    assert not first.is_gradient_checkpointing


CHANGES = {
    "a weight": lambda model: model.model.layers[0].mlp.up_proj.weight.data.add_(1),
    "a buffer": lambda model: model.model.rotary_emb.inv_freq[0].fill_(2),
    "an attribute": lambda model: setattr(model.model.layers[0].self_attn, "scaling", 0.5),
    "the attention": lambda model: setattr(model.config, "_attn_implementation", "eager"),
    "the config": lambda model: setattr(model.config, "rms_norm_eps", 0.1),
    "a hook": lambda model: model.model.layers[0].mlp.up_proj.register_full_backward_hook(print),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_model_is_loaded_again(models, source, change, caplog):
    caplog.set_level("INFO")
    first = models.load(source)
    change(first)
    models.keep(first)
    assert models.load(source) is not first
    assert "the run changed its base model, so a next run loads it again: " in caplog.text


def test_a_model_whose_files_changed_is_loaded_again(models, source, tmp_path):
    load_model(source).save_pretrained(tmp_path)
    folder = locate(replace(TINY, id=str(tmp_path), weights=Weights.pretrained), tmp_path)
    first = models.load(folder)
    models.keep(first)
    assert models.load(folder) is first
    models.keep(first)
    other = load_model(source)
    other.model.norm.weight.data += 1
    other.save_pretrained(tmp_path)
    assert torch.equal(models.load(folder).model.norm.weight, other.model.norm.weight)


def test_an_error_while_keeping_does_not_fail_the_finished_run(models, source, caplog):
    first = models.load(source)
    models.keep(SimpleNamespace())
    assert "the next run loads its model again (AttributeError: " in caplog.text
    assert models.load(source) is not first
