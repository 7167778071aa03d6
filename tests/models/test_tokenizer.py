import datetime
import shutil
from pathlib import Path
from typing import Any

import pytest

from tometune.common.errors import UserError
from tometune.config.model import ModelConfig, Quantization
from tometune.models.source import locate
from tometune.models.tokenizer import load_tokenizer, pin_date

DATED = (
    "{%- if not date_string is defined %}{%- if strftime_now is defined %}"
    '{%- set date_string = strftime_now("%d %b %Y") %}{%- else %}{%- set date_string = "26 Jul 2024" %}{%- endif %}'
    "{%- endif %}Today: {{ date_string }}{% for message in messages %}|{{ message.content }}{% endfor %}"
)


def saved(tokenizer: Any, base: str, folder: Path) -> ModelConfig:
    """Save a changed tokenizer next to the configs of its model, and return the config that loads it."""
    tokenizer.save_pretrained(folder)
    for file in ("config.json", "generation_config.json"):
        shutil.copy(Path(base) / file, folder)
    return ModelConfig(id=str(folder), quantization=Quantization.none, date_string="01 Feb 2003")


def test_the_date_is_pinned_and_travels_with_the_tokenizer(
    tiny_config: ModelConfig, cache: Path, tmp_path: Path
) -> None:
    source = locate(tiny_config, cache)
    tokenizer = load_tokenizer(source)
    tokenizer.chat_template = DATED
    config = saved(tokenizer, source.location, tmp_path)
    today = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert datetime.datetime.now().strftime("%d %b %Y") in today
    pinned = load_tokenizer(locate(config, cache))
    assert pinned.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "Today: 01 Feb 2003|hi"
    pinned.save_pretrained(tmp_path)
    again = load_tokenizer(locate(config, cache))
    assert again.chat_template == pinned.chat_template


def test_a_template_without_a_date_is_left_alone() -> None:
    assert pin_date("{{ messages }}", "01 Feb 2003") == "{{ messages }}"


def test_a_model_without_a_chat_template_is_refused(tiny_config: ModelConfig, cache: Path, tmp_path: Path) -> None:
    source = locate(tiny_config, cache)
    tokenizer = load_tokenizer(source)
    tokenizer.chat_template = None
    with pytest.raises(UserError, match="no chat template"):
        load_tokenizer(locate(saved(tokenizer, source.location, tmp_path), cache))


def test_a_missing_pad_token_becomes_the_end_of_turn(tiny_config: ModelConfig, cache: Path, tmp_path: Path) -> None:
    source = locate(tiny_config, cache)
    tokenizer = load_tokenizer(source)
    tokenizer.pad_token = None
    again = load_tokenizer(locate(saved(tokenizer, source.location, tmp_path), cache))
    assert again.pad_token == again.eos_token == "<|im_end|>"
