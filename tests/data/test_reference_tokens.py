"""Llama 3: the same tokens as its makers' own code gives."""

import sys
from functools import partial
from importlib import util
from types import ModuleType

import pytest

from tests.data.tokenised import CONVERSATIONS, mix_from
from tests.fixtures.llama3 import llama3_tokenizer
from tometune.data.template import Messages
from tometune.data.tokens import Tokens, tokenise

PREAMBLE = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
AGREEING = CONVERSATIONS[:5] + CONVERSATIONS[-1:]
"""The reference neither trims texts nor writes those of tools as JSON."""


def with_preamble(messages: Messages) -> Messages:
    """The system turn that the template makes of a conversation's own, or of none."""
    own = messages[0]["role"] == "system"
    system = {"role": "system", "content": PREAMBLE + (messages[0]["content"] if own else "")}
    return [system, *messages[own:]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Tokens:
    return tokenise(mix_from(AGREEING), llama3_tokenizer(), 512, tmp_path_factory.mktemp("tokens"))


def test_llama3_agrees_with_the_reference_tokenizer(made: Tokens) -> None:
    from llama_models.llama3.tokenizer import Tokenizer

    reference = Tokenizer.get_instance()
    special, encode = reference.special_tokens, partial(reference.encode, bos=False, eos=False)
    for messages, row in zip(AGREEING, made.dataset, strict=True):
        ids = [special["<|begin_of_text|>"]]
        for turn in with_preamble(messages):
            ids += [special["<|start_header_id|>"], *encode(turn["role"]), special["<|end_header_id|>"]]
            ids += [*encode("\n\n"), *encode(turn["content"]), special["<|eot_id|>"]]
        assert row["input_ids"] == ids


@pytest.fixture
def no_pillow_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference names Pillow's image type in annotations; for texts an empty module will do."""
    if util.find_spec("PIL") is None:
        image = ModuleType("PIL.Image")
        image.Image = object  # type: ignore[attr-defined]
        package = ModuleType("PIL")
        package.Image = image  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "PIL", package)
        monkeypatch.setitem(sys.modules, "PIL.Image", image)


@pytest.mark.usefixtures("no_pillow_needed")
def test_llama3_agrees_with_the_reference_chat_format(made: Tokens) -> None:
    from llama_models.datatypes import RawMessage
    from llama_models.llama3.chat_format import ChatFormat
    from llama_models.llama3.tokenizer import Tokenizer

    chat = ChatFormat(Tokenizer.get_instance())
    for messages, row in zip(AGREEING, made.dataset, strict=True):
        turned = [RawMessage(role=turn["role"], content=turn["content"]) for turn in with_preamble(messages)]
        next_header = chat._encode_header("assistant")
        assert [*row["input_ids"], *next_header] == chat.encode_dialog_prompt(turned).tokens
