"""Engines over a tiny model of random weights, and run folders with adapters that change what it says."""

import json
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

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
from tometune.config.root import Config, conf_dir, register, typed
from tometune.models import tiny
from tometune.models.source import fingerprint
from tometune.runs.identity import plain
from tometune.runs.run import SCHEMA

Engines = Callable[..., TransformersEngine]


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return chatml_tokenizer(CHATML)


@pytest.fixture
def shared(tokenizer: PreTrainedTokenizerFast) -> SharedModel:
    """Random weights, large enough that greedy answers differ from prompt to prompt and some end by themselves."""
    model = tiny_llama(tokenizer, seed=3, initializer_range=0.4, max_position_embeddings=1024)
    return SharedModel(with_adapter(with_adapter(model, "one", 1), "two", 2), tokenizer)


@pytest.fixture
def engine(shared: SharedModel) -> Engines:
    """Return a function that gives an engine over the shared model."""
    return lambda adapter=None, context=1024: TransformersEngine(shared, adapter, context)


def with_adapter(model: Any, name: str, seed: int) -> peft.PeftModel:
    """Put a random adapter on a model; large enough to change every answer."""
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj", "down_proj"])
    torch.manual_seed(seed)
    if isinstance(model, peft.PeftModel):
        model.add_adapter(name, config)
    else:
        model = peft.get_peft_model(model, config, adapter_name=name)
    with torch.no_grad():
        for key, value in model.named_parameters():
            if f"lora_B.{name}" in key:
                value.normal_(std=0.5)
    return model


@cache
def default_config() -> Config:
    register()
    with initialize_config_dir(config_dir=str(conf_dir()), version_base="1.3"):
        return typed(compose("train", overrides=["model=tiny", "tracking=none"]))


def write_run(folder: Path, base: Path, seed: int = 1, local: bool = False, **record: Any) -> Path:
    """Write a finished run: a random adapter on `tiny` (at `base`); `local` names the base by its folder."""
    config = default_config()
    values = plain(config)
    if local:
        values["model"] |= {"id": str(base), "name": "mine", "weights": "pretrained"}
    config = typed(OmegaConf.create(values))
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(values)))
    model = {"name": config.model.name, "id": config.model.id, "revision": fingerprint(config.model)}
    said = {"schema": SCHEMA, "run_id": folder.name, "status": "completed", "model": model, **record}
    (folder / "run.json").write_text(json.dumps(said))
    adapted = with_adapter(AutoModelForCausalLM.from_pretrained(base), "default", seed)
    adapted.save_pretrained(folder / "adapter")
    return folder


def write_whole(folder: Path, base: Path) -> Path:
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
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def base(store: Path) -> Path:
    """The folder of `tiny` in that cache."""
    return tiny.built(store)


@pytest.fixture
def composed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., Config]]:
    """Return a function that composes the config of a command line; the working folder is `tmp_path`."""
    monkeypatch.chdir(tmp_path)

    def config(*overrides: str) -> Config:
        register()
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            made = compose("train", overrides=list(overrides), return_hydra_config=True)
        HydraConfig.instance().set_config(made)
        with open_dict(made):
            del made.hydra
        return typed(made)

    yield config
    HydraConfig.instance().cfg = None  # type: ignore[assignment]
