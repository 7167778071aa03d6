"""llama.cpp in its own processes: Llama-3.2's template and tokens, and what breaks it without breaking the command."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.fixtures.llama import tiny_llama
from tests.fixtures.llama3 import llama3_tokenizer
from tometune.common.errors import UserError
from tometune.exporting import gguf
from tometune.exporting.gate import CONVERSATIONS, EngineError, Prompt, divergence
from tometune.exporting.reference import log_probabilities, render
from tometune.models import tiny


def test_llama_3_token_for_token_with_one_begin_of_text(tmp_path: Path) -> None:
    folder, file = tmp_path / "model", tmp_path / "model.gguf"
    tokenizer = llama3_tokenizer()
    tokenizer.save_pretrained(folder)
    shape = {"hidden_size": 64, "intermediate_size": 128, "initializer_range": 0.4, "max_position_embeddings": 2048}
    tiny_llama(tokenizer, seed=3, tie_word_embeddings=True, **shape).bfloat16().save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    gguf.convert(folder, file, "bf16", "llama")
    prompts = []
    for messages in CONVERSATIONS:
        ids = render(tokenizer, messages)
        prompts.append(Prompt(messages, ids, ids[-5:], log_probabilities(model, ids, ids[-5:])))
    engine = gguf.LlamaCppEngine(file)
    assert engine.render(prompts) == [prompt.ids for prompt in prompts]
    assert {prompt.ids.count(tokenizer.bos_token_id) for prompt in prompts} == {1}
    for prompt, found in zip(prompts[:2], engine.log_probabilities(prompts[:2]), strict=True):
        assert divergence(prompt.log_probabilities, found).mean() < 0.02


@pytest.mark.nightly
def test_a_tokenizer_that_the_converter_does_not_know(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^format=gguf: llama.cpp's converter rejects this model \(.*pre-tokeniz"):
        gguf.convert(tiny.built(tmp_path), tmp_path / "x.gguf", "bf16", "tiny")


def test_a_broken_file_is_an_error_of_the_engine(tmp_path: Path) -> None:
    file = tmp_path / "broken.gguf"
    file.write_bytes(b"GGUF" + b"\xff" * 4096)
    prompt = Prompt(CONVERSATIONS[0], [1, 2, 3], [4], np.zeros((1, 8), np.float32))
    with pytest.raises(EngineError, match=r"^llama.cpp ended with "):
        gguf.LlamaCppEngine(file).render([prompt])
