"""Ollama's Modelfile: the template in Go's syntax is the model's own, or is left out."""

import re

import pytest

from tests.data.chatml import CHATML, DEFAULT_SYSTEM, chatml_tokenizer
from tests.fixtures.llama3 import llama3_tokenizer
from tometune.exporting.modelfile import go_template, modelfile


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
