"""The licence of a base by its name."""

import pytest

from tometune.exporting.model_card import Licence, licence_of


@pytest.mark.parametrize(
    ("name", "licence"),
    [
        ("unsloth/Llama-3.2-1B-Instruct", Licence("llama3.2", "Llama 3.2", "Llama", "Llama")),
        ("meta-llama/Meta-Llama-3-8B-Instruct", Licence("llama3", "Meta Llama 3", "Meta Llama 3", "Llama-3")),
        ("nvidia/Llama-3_1-Nemotron-51B-Instruct", Licence("llama3.1", "Llama 3.1", "Llama", "Llama")),
        ("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", Licence("llama3.1", "Llama 3.1", "Llama", "Llama")),
        ("unsloth/DeepSeek-R1-Distill-Llama-70B-bnb-4bit", Licence("llama3.3", "Llama 3.3", "Llama", "Llama")),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", Licence("apache-2.0")),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", Licence("apache-2.0")),
        ("somebody/llama-30b", Licence("other")),
    ],
)
def test_licences(name, licence):
    assert licence_of(name) == licence
