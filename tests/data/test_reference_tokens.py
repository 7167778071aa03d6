"""Llama 3: the same tokens as Meta's own code gives."""

from pathlib import Path

from tests.data.tokenised import CONVERSATIONS, TOKENIZERS, mix_from
from tometune.data.template_support import Messages
from tometune.data.tokens import tokenise

PREAMBLE = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
AGREEING = CONVERSATIONS[:5] + CONVERSATIONS[-1:]
"""The reference neither trims texts nor writes tool texts as JSON."""


def with_preamble(messages: Messages) -> Messages:
    """Return a conversation with the system turn that the template writes."""
    own = messages[0]["role"] == "system"
    system = {"role": "system", "content": PREAMBLE + (messages[0]["content"] if own else "")}
    return [system, *messages[own:]]


def test_llama3_agrees_with_the_reference(tmp_path: Path) -> None:
    from llama_models.datatypes import RawMessage
    from llama_models.llama3.chat_format import ChatFormat
    from llama_models.llama3.tokenizer import Tokenizer

    chat = ChatFormat(Tokenizer.get_instance())
    made = tokenise(mix_from(AGREEING), TOKENIZERS["llama3"][0](), 512, tmp_path)
    for messages, row in zip(AGREEING, made.dataset, strict=True):
        turned = [RawMessage(role=turn["role"], content=turn["content"]) for turn in with_preamble(messages)]
        next_header = chat._encode_header("assistant")
        assert [*row["input_ids"], *next_header] == chat.encode_dialog_prompt(turned).tokens
