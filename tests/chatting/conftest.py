"""Engines over words or over a tiny model of random weights, and run folders with adapters that change its answers."""

import json
import time

import peft
import pytest
import torch
from omegaconf import OmegaConf
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from tests.data.chatml import CHATML, chatml_tokenizer
from tests.fixtures.llama import tiny_llama
from tometune.chatting.conversation import End, Piece
from tometune.chatting.transformers_engine import SharedModel, TransformersEngine
from tometune.config.root import typed
from tometune.models.source import fingerprint, tiny_folder
from tometune.runs.run import SCHEMA


class Words:
    """An engine whose tokens are words and which repeats the prompt, a word every `pause` seconds."""

    def __init__(self, start="", context=10_000, pause=0.0):
        self.start, self.context, self.pause = start, context, pause
        self.made, self.seeds = 0, []

    def count(self, messages):
        return sum(len(message["content"].split()) + 1 for message in messages)

    def stream(self, messages, settings):
        self.seeds.append(settings.seed)
        words = (self.start + messages[-1]["content"]).split(" ")
        for number, word in enumerate(words):
            time.sleep(self.pause)
            self.made += 1
            yield Piece(word if number == 0 else f" {word}", number + 1)
        yield Piece("", len(words) + 1, End.turn)


def answer(engine, messages, settings):
    *rest, last = engine.stream(messages, settings)
    assert all(piece.end is None for piece in rest)
    return "".join(piece.text for piece in [*rest, last]), last.tokens, last.end


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


TINY = {"name": "tiny", "id": "tiny", "backend": "transformers", "quantization": "none", "weights": "random"}


def write_run(folder, base, seed=1, local=False, whole=False, **record):
    """Write a finished run: a random adapter on `tiny` (at `base`); `local` names the base by its folder.

    `whole` writes a run of `lora=none` instead: the same model as a whole.
    """
    model = TINY | ({"id": str(base), "name": "mine", "weights": "pretrained"} if local else {})
    values = OmegaConf.create({"model": model, "data": {"name": "mix_100k"}, "lora": {"enabled": not whole}})
    folder.mkdir(parents=True)
    OmegaConf.save(values, folder / "config.yaml")
    model = {"name": model["name"], "id": model["id"], "revision": fingerprint(typed(values).model)}
    record = {"schema": SCHEMA, "run_id": folder.name, "status": "completed", "model": model, **record}
    (folder / "run.json").write_text(json.dumps(record))
    adapted = with_adapter(AutoModelForCausalLM.from_pretrained(base), "default", seed)
    if whole:
        adapted.merge_and_unload().save_pretrained(folder / "model")
        PreTrainedTokenizerFast.from_pretrained(base).save_pretrained(folder / "model")
    else:
        adapted.save_pretrained(folder / "adapter")
    return folder


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def base(store):
    """The folder of `tiny` in that cache."""
    return tiny_folder(store)
