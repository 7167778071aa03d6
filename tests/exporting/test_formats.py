"""Merging adds the adapter in float32 and rounds once; the share that survives; Ollama's template in Go's syntax."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.data.chatml import CHATML, DEFAULT_SYSTEM, chatml_tokenizer
from tests.exporting.conftest import builder_of
from tests.fixtures.llama import tiny_llama
from tests.fixtures.llama3 import llama3_tokenizer
from tometune.config.model import LoraConfig
from tometune.exporting import formats
from tometune.exporting.formats import exports_of, go_template, merge, modelfile, share_of_change
from tometune.models.adapter import add_adapter, load_adapter


def base() -> torch.nn.Module:
    return tiny_llama(chatml_tokenizer(), seed=1).bfloat16()


def adapter(folder: Path, size: float, **settings: bool) -> Path:
    """Save an adapter whose change is of about this size."""
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], **settings)
    model = add_adapter(base(), lora, seed=0)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=size)
    model.save_pretrained(folder / "adapter")
    return folder / "adapter"


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"use_dora": True}])
def test_the_merged_model_in_float32_computes_what_the_adapter_does(tmp_path, settings):
    made, ids = adapter(tmp_path, 0.01, **settings), torch.arange(4, 20).reshape(1, -1)
    tuned, bare = load_adapter(base().float(), made)(ids).logits, base().float()(ids).logits
    model = merge(base(), made, torch.float32)
    torch.testing.assert_close(model(ids).logits, tuned, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(bare, tuned, atol=1e-3)
    model.save_pretrained(tmp_path / "merged")
    assert share_of_change(base(), made, tmp_path / "merged") == pytest.approx(1, abs=1e-4)


def test_rounding_loses_small_changes(tmp_path):
    made = adapter(tmp_path, 2e-5)
    shares = {}
    for dtype in (torch.float16, torch.bfloat16):
        merge(base(), made, dtype).save_pretrained(tmp_path / str(dtype))
        shares[dtype] = share_of_change(base(), made, tmp_path / str(dtype))
    assert 0.05 < shares[torch.bfloat16] < 0.9 < shares[torch.float16] < 1.1
    base().save_pretrained(tmp_path / "bare")
    assert share_of_change(base(), made, tmp_path / "bare") == 0


def test_each_weight_is_rounded_once(tmp_path):
    made = adapter(tmp_path, 0.01)
    exact = merge(base(), made, torch.float32).state_dict()
    rounded = merge(base(), made, torch.bfloat16).state_dict()
    assert all(torch.equal(rounded[name], weight.bfloat16()) for name, weight in exact.items())


@pytest.mark.whole
def test_a_merged_model_without_the_adapter_fails_however_little_was_trained(copied, trained, tmp_path, monkeypatch):
    path = copied / "adapter" / "adapter_model.safetensors"
    weights = {name: value * (0.05 if "lora_B" in name else 1) for name, value in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})
    builder = builder_of(copied, trained, tmp_path / "export")
    export = exports_of(["merged_16bit"], [], builder.folder)[0]
    monkeypatch.setattr(formats, "merge", lambda base, _, dtype: base.to(dtype))
    gate = builder.make(export)
    assert gate["problems"][0].startswith("weights: 16 bits hold 0.0% of what training changed, less than 10% (")
    monkeypatch.undo()
    gate = builder.make(export)
    assert gate["passed"], gate["problems"]
    assert 0.3 < gate["checks"]["share_of_change"] < 1.1


def rendered(template: str, messages: list[dict[str, str]], system: str) -> str:
    """Render the part of Go's text/template that the Modelfile uses, as Ollama does."""
    given = [message["content"] for message in messages if message["role"] == "system"]
    system = given[0] if given else system
    head, loop, tail = re.fullmatch(
        r"(.*?)\{\{ range \.Messages \}\}(.*)\{\{ end \}\}(.*)", template, re.DOTALL
    ).groups()
    optional = re.fullmatch(r"\{\{ if \.System \}\}(.*)\{\{ end \}\}", head, re.DOTALL)
    head = (optional[1] if system else "") if optional else head
    turns = re.fullmatch(
        r'\{\{ if eq \.Role "user" \}\}(.*)\{\{ else if eq \.Role "assistant" \}\}(.*)\{\{ end \}\}', loop, re.DOTALL
    )
    bodies = {"user": turns[1], "assistant": turns[2]}
    body = "".join(bodies[m["role"]].replace("{{ .Content }}", m["content"]) for m in messages if m["role"] in bodies)
    return head.replace("{{ .System }}", system) + body + tail


CONVERSATIONS = [
    [{"role": "user", "content": "Hi, {you}!"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
    [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c\n\nd"},
    ],
]


@pytest.mark.parametrize("kind", ["chatml", "chatml with a system message", "llama 3.2"])
def test_the_go_template_renders_what_the_models_own_does(kind):
    tokenizer = {
        "chatml": lambda: chatml_tokenizer(CHATML),
        "chatml with a system message": lambda: chatml_tokenizer(DEFAULT_SYSTEM + CHATML),
        "llama 3.2": llama3_tokenizer,
    }[kind]()
    template, system = go_template(tokenizer)
    for messages in CONVERSATIONS:
        own = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert rendered(template, messages, system) == own.removeprefix("<|begin_of_text|>")


def test_another_form_of_template_is_left_to_ollama():
    tokenizer = chatml_tokenizer("{% for m in messages %}{{ loop.index }}{{ m['content'] }}{% endfor %}")
    assert go_template(tokenizer) is None
    text = modelfile("m.gguf", tokenizer, ["<|im_end|>"], 2048)
    assert "FROM ./m.gguf" in text
    assert "TEMPLATE " not in text.replace("No TEMPLATE:", "")
    assert 'PARAMETER stop "<|im_end|>"' in text
    assert "num_ctx 2048" in text
