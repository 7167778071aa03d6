import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tometune.common.errors import UserError
from tometune.config.model import ModelConfig, Quantization
from tometune.models.source import ModelSource, locate
from tometune.models.tokenizer import load_tokenizer, pin_date

DATED = (
    "{%- if not date_string is defined %}{%- if strftime_now is defined %}"
    '{%- set date_string = strftime_now("%d %b %Y") %}{%- else %}{%- set date_string = "26 Jul 2024" %}{%- endif %}'
    "{%- endif %}Today: {{ date_string }}{% for message in messages %}|{{ message.content }}{% endfor %}"
)


@pytest.fixture
def reloaded(source: ModelSource, cache: Path, tmp_path: Path) -> Callable[..., Any]:
    def changed(**attributes: Any) -> Any:
        tokenizer = load_tokenizer(source)
        for name, value in attributes.items():
            setattr(tokenizer, name, value)
        tokenizer.save_pretrained(tmp_path)
        for file in ("config.json", "generation_config.json"):
            shutil.copy(Path(source.location) / file, tmp_path)
        config = ModelConfig(id=str(tmp_path), quantization=Quantization.none, date_string="01 Feb 2003")
        return load_tokenizer(locate(config, cache))

    return changed


def test_the_date_is_pinned_and_travels_with_the_tokenizer(reloaded):
    pinned = reloaded(chat_template=DATED)
    assert pinned.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "Today: 01 Feb 2003|hi"
    assert reloaded(chat_template=pinned.chat_template).chat_template == pinned.chat_template
    assert pin_date("{{ messages }}", "01 Feb 2003") == "{{ messages }}", "a template without a date"


def test_a_model_without_a_chat_template_is_refused(reloaded):
    with pytest.raises(UserError, match="no chat template"):
        reloaded(chat_template=None)


def test_a_missing_pad_token_becomes_the_end_of_turn(reloaded):
    again = reloaded(pad_token=None)
    assert again.pad_token == again.eos_token == "<|im_end|>"
