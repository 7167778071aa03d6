"""Chat templates: conversations as text, with the places that are trained on.

Trained on are the assistant's texts and the token that ends each, so that the model learns to stop; not the headers,
and not what follows the end of the turn. The places are found by walking through the rendered text with the pieces
that the template puts around the texts. These are learnt by rendering a probe of the same roles, once for each
sequence of roles. Where a template does more than trim a text (quotes or rewrites it), each turn of the assistant is
located by rendering the conversation up to it.
"""

import re
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from tometune.common.errors import UserError

Messages = list[dict[str, str]]
Span = tuple[int, int]

PROBE = re.compile(r"tm0probe(\d+)x")
PRIVATE = range(0x100000, 0x10FFFE)
"""The last private-use plane of Unicode: characters without a meaning."""


@dataclass(frozen=True)
class Rendered:
    """One conversation as the model sees it."""

    text: str
    """With a stand-in for each special token that a message's own text spells."""

    spans: list[Span]
    """Characters [start, end) of `text` that are trained on, one pair for each turn of the assistant."""

    stand_ins: dict[str, str]
    """Stand-ins in `text` and what they stand for; empty for nearly every row."""

    def spelt(self, start: int, end: int) -> str:
        """Return a part of the text with the stand-ins replaced by what they stand for."""
        text = self.text[start:end]
        for character, token in self.stand_ins.items():
            text = text.replace(character, token)
        return text


@dataclass(frozen=True)
class Shape:
    """What a template writes around the texts of a sequence of roles: a piece, a text, a piece, …, a last piece."""

    order: list[int]
    """Number of the message whose text follows each piece but the last."""

    pieces: list[str]


class Template:
    """A tokenizer's chat template, probed for each sequence of roles."""

    def __init__(self, tokenizer: Any) -> None:
        """Learn how the template begins an answer.

        Raises:
            UserError: the template cannot render a question and its answer, or does not show their texts.
        """
        self.tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder.values()
        controls = sorted((token.content for token in added if token.special), key=len, reverse=True)
        self.special = re.compile("|".join(map(re.escape, controls)) or "(?!)")
        self._shapes: dict[tuple[str, ...], Shape | None] = {}
        shape = self._shape(("user", "assistant"))
        if shape is None or shape.order != [0, 1]:
            raise UserError("model: its chat template does not show each turn's text once; pick another model")
        prompt = PROBE.split(self._render([_probes(("user",))], prompt=True)[0])[-1]
        left = shape.pieces[1].removeprefix(prompt)
        # White space that stands before an answer but not at the end of a prompt is for the model to write.
        self.lead = left if left.isspace() else ""
        self.ends = bool(self._end_of_turn(shape.pieces[2]))

    def overhead(self) -> int:
        """Return the tokens of the shortest conversation: what no `max_length` can go below."""
        text = self._render([[{"role": "user", "content": "a"}, {"role": "assistant", "content": "a"}]])[0]
        return len(self.tokenizer(text, add_special_tokens=False).input_ids)

    def prompt(self, messages: Messages) -> Rendered:
        """Return a conversation up to where the answer begins; nothing in it is trained on.

        Raises:
            UserError: the template refuses the conversation.
        """
        plain, stand_ins = self._without_special(messages)
        return Rendered(self._render([plain], prompt=True)[0], [], stand_ins)

    def render(self, conversations: list[Messages]) -> list[Rendered]:
        """Return each conversation's text and the places that are trained on.

        Raises:
            UserError: the template refuses a conversation, or changes earlier turns when later ones are added.
        """
        plain = [self._without_special(messages) for messages in conversations]
        texts = self._render([messages for messages, _ in plain])
        rendered = []
        for text, (messages, stand_ins) in zip(texts, plain, strict=True):
            spans = self._walk(text, messages)
            rendered.append(Rendered(text, self._step_by_step(text, messages) if spans is None else spans, stand_ins))
        return rendered

    def _render(self, conversations: list[Messages], prompt: bool = False) -> list[str]:
        try:
            rendered: list[str] = self.tokenizer.apply_chat_template(
                conversations, tokenize=False, add_generation_prompt=prompt
            )
        except TemplateError as error:
            if len(conversations) > 1:
                for messages in conversations:  # find the one it refuses
                    self._render([messages], prompt)
            roles = ", ".join(message["role"] for message in conversations[0])
            raise UserError(
                f"model: its chat template cannot render turns of {roles} ({error}); pick another model, or leave "
                "such rows out of the data"
            ) from None
        return rendered

    def _without_special(self, messages: Messages) -> tuple[Messages, dict[str, str]]:
        """Put an unused character in the place of each special token that a text spells.

        So the template's own control tokens and text that looks like them are told apart, whatever a template does
        with the text.
        """
        found = {token for message in messages for token in self.special.findall(message["content"])}
        if not found:
            return messages, {}
        used = {character for message in messages for character in message["content"]}
        free = (chr(code) for code in PRIVATE if chr(code) not in used)
        stand_ins = dict(zip(sorted(found), free, strict=False))
        contents = (self.special.sub(lambda match: stand_ins[match.group()], turn["content"]) for turn in messages)
        replaced = [{**message, "content": content} for message, content in zip(messages, contents, strict=True)]
        return replaced, {character: token for token, character in stand_ins.items()}

    def _shape(self, roles: tuple[str, ...]) -> Shape | None:
        """Return what the template writes around the texts; None unless it shows each once."""
        if roles not in self._shapes:
            parts = PROBE.split(self._render([_probes(roles)])[0])
            order = [int(number) for number in parts[1::2]]
            whole = sorted(order) == list(range(len(roles)))
            self._shapes[roles] = Shape(order, parts[::2]) if whole else None
        return self._shapes[roles]

    def _walk(self, text: str, messages: Messages) -> list[Span] | None:
        """Find the turns by the pieces around them; None unless the whole text is accounted for."""
        shape = self._shape(tuple(message["role"] for message in messages))
        if shape is None or not text.startswith(shape.pieces[0]):
            return None
        position, spans = len(shape.pieces[0]), []
        for number, before, after in zip(shape.order, shape.pieces, shape.pieces[1:], strict=False):
            content = messages[number]["content"]
            if not text.startswith(content + after, position):
                content = content.strip()
                if not text.startswith(content + after, position):
                    return None
            end = position + len(content)
            if messages[number]["role"] == "assistant":
                lead = len(self.lead) if before.endswith(self.lead) else 0
                spans.append((position - lead, end + len(self._end_of_turn(after))))
            position = end + len(after)
        return spans if position == len(text) else None

    def _end_of_turn(self, piece: str) -> str:
        """Return the special token that comes first in what follows an answer, with white space before it."""
        match = self.special.search(piece)
        return piece[: match.end()] if match and not piece[: match.start()].strip() else ""

    def _step_by_step(self, text: str, messages: Messages) -> list[Span]:
        """Find each turn of the assistant as what rendering adds to the prompt before it."""
        spans = []
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self._render([messages[:number]], prompt=True)[0]
            after = self._render([messages[: number + 1]])[0]
            if not (text.startswith(after) and after.startswith(before)):
                start = messages[0]["content"][:60]
                raise UserError(
                    "model: its chat template changes earlier turns when later ones are added, so the assistant's "
                    f"texts cannot be told apart (row that begins {start!r}); pick another model or leave such rows out"
                )
            last = max((match.end() for match in self.special.finditer(after, len(before))), default=len(after))
            spans.append((len(before), len(after) if after[last:].strip() else last))
        return spans


def _probes(roles: tuple[str, ...]) -> Messages:
    """Return a conversation whose texts can be found again by their numbers."""
    return [{"role": role, "content": f"tm0probe{number}x"} for number, role in enumerate(roles)]
