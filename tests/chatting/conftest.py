"""Engines over a tiny model of random weights, and run folders with adapters that change what it says."""

import json
import shutil
from functools import cache

import peft
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf, open_dict
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from tests.data.chatml import CHATML, chatml_tokenizer
from tests.fixtures.llama import tiny_llama
from tometune.chatting.transformers_engine import SharedModel, TransformersEngine
from tometune.config.root import conf_dir, register, typed
from tometune.models import tiny
from tometune.models.source import fingerprint
from tometune.runs.identity import plain
from tometune.runs.run import SCHEMA


@pytest.fixture(scope="session")
def tokenizer():
    return chatml_tokenizer(CHATML)


@pytest.fixture
def shared(tokenizer):
    """Random weights, large enough that greedy answers differ from prompt to prompt and some end by themselves."""
    model = tiny_llama(tokenizer, seed=3, initializer_range=0.4, max_position_embeddings=1024)
    return SharedModel(with_adapter(with_adapter(model, "one", 1), "two", 2), tokenizer)


@pytest.fixture
def engine(shared):
    """Return a function that gives an engine over the shared model."""
    return lambda adapter=None, context=1024: TransformersEngine(shared, adapter, context)


def with_adapter(model, name, seed):
    """Put a random adapter on a model; large enough to change every answer."""
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj", "down_proj"])
    torch.manual_seed(seed)
    if isinstance(model, peft.PeftModel):
        model.add_adapter(name, config)
    else:
        model = peft.get_peft_model(model, config, adapter_name=name)
    for key, value in model.named_parameters():
        if f"lora_B.{name}" in key:
            torch.nn.init.normal_(value, std=0.5)
    return model


def composed_config(*overrides):
    register()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("train", overrides=list(overrides), return_hydra_config=True)


def without_hydra(config):
    with open_dict(config):
        del config.hydra
    return typed(config)


@cache
def default_config():
    return without_hydra(composed_config("model=tiny", "tracking=none"))


def write_run(folder, base, seed=1, local=False, **record):
    """Write a finished run: a random adapter on `tiny` (at `base`); `local` names the base by its folder."""
    values = plain(default_config())
    if local:
        values["model"] |= {"id": str(base), "name": "mine", "weights": "pretrained"}
    folder.mkdir(parents=True)
    OmegaConf.save(values, folder / "config.yaml")
    config = typed(OmegaConf.create(values)).model
    model = {"name": config.name, "id": config.id, "revision": fingerprint(config)}
    record = {"schema": SCHEMA, "run_id": folder.name, "status": "completed", "model": model, **record}
    (folder / "run.json").write_text(json.dumps(record))
    adapted = with_adapter(AutoModelForCausalLM.from_pretrained(base), "default", seed)
    adapted.save_pretrained(folder / "adapter")
    return folder


def write_whole(folder, base):
    """Write a finished run of `lora=none`: the model of a random adapter, as a whole and in the adapter's place."""
    write_run(folder, base)
    adapted = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder / "adapter")
    adapted.merge_and_unload().save_pretrained(folder / "model")
    PreTrainedTokenizerFast.from_pretrained(base).save_pretrained(folder / "model")
    shutil.rmtree(folder / "adapter")
    config = OmegaConf.load(folder / "config.yaml")
    config.lora.enabled = False
    OmegaConf.save(config, folder / "config.yaml")
    return folder


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def base(store):
    """The folder of `tiny` in that cache."""
    return tiny.built(store)


@pytest.fixture
def composed(monkeypatch, tmp_path):
    """Return a function that composes the config of a command line; the working folder is `tmp_path`."""
    monkeypatch.chdir(tmp_path)

    def config(*overrides):
        made = composed_config(*overrides)
        HydraConfig.instance().set_config(made)
        return without_hydra(made)

    yield config
    HydraConfig.instance().cfg = None
