"""Ollama's template in Go renders what the model's own does."""

import pytest

from tests.data.chatml import CHATML, DEFAULT_SYSTEM, chatml_tokenizer
from tests.fixtures.llama3 import llama3_tokenizer
from tometune.exporting.formats import go_template, modelfile

CHATML_IN_GO = (
    "{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}"
    '{{ range .Messages }}{{ if eq .Role "user" }}<|im_start|>user\n{{ .Content }}<|im_end|>\n'
    '{{ else if eq .Role "assistant" }}<|im_start|>assistant\n{{ .Content }}<|im_end|>\n{{ end }}{{ end }}'
    "<|im_start|>assistant\n"
)
LLAMA_IN_GO = (
    "<|start_header_id|>system<|end_header_id|>\n\n"
    "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n{{ .System }}<|eot_id|>"
    '{{ range .Messages }}{{ if eq .Role "user" }}<|start_header_id|>user<|end_header_id|>\n\n{{ .Content }}<|eot_id|>'
    '{{ else if eq .Role "assistant" }}<|start_header_id|>assistant<|end_header_id|>\n\n{{ .Content }}<|eot_id|>'
    "{{ end }}{{ end }}<|start_header_id|>assistant<|end_header_id|>\n\n"
)


@pytest.mark.parametrize(
    ("tokenizer", "template", "system"),
    [
        (lambda: chatml_tokenizer(CHATML), CHATML_IN_GO, ""),
        (lambda: chatml_tokenizer(DEFAULT_SYSTEM + CHATML), CHATML_IN_GO, "You are SmolLM"),
        (llama3_tokenizer, LLAMA_IN_GO, ""),
    ],
)
def test_the_template_in_go(tokenizer, template, system):
    assert go_template(tokenizer()) == (template, system)


def test_another_form_of_template_is_left_to_ollama():
    tokenizer = chatml_tokenizer("{% for m in messages %}{{ loop.index }}{{ m['content'] }}{% endfor %}")
    assert go_template(tokenizer) is None
    lines = modelfile("m.gguf", tokenizer, ["<|im_end|>"], 2048).splitlines()
    assert not [line for line in lines if line.startswith(("TEMPLATE", "SYSTEM"))]
    assert {"FROM ./m.gguf", 'PARAMETER stop "<|im_end|>"', "PARAMETER num_ctx 2048"} <= {*lines}
