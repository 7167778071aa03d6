"""Chat templates: where a conversation becomes text, and which characters of it are trained on.

Trained on are the assistant's texts and the token that ends each, so that the model learns to stop. The headers and
anything after the end of a turn are not. Turns are found by walking through the rendered text with the pieces that the
template puts around the texts; these pieces are learned by rendering a probe once for each sequence of roles. If a
template does more than trim a text (quotes or rewrites it), or a turn has more than a text, each assistant turn is
located by rendering the conversation up to it.

An answer is trained on only if the prompt that asks for it is what precedes it in the row. What a template cannot show
apart from texts (reasoning, tool calls and definitions) is found by rendering probes, and removed.
"""

import json
import re
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from tometune.common.errors import UserError

Messages = list[dict[str, Any]]
Tools = list[dict[str, Any]] | None
Span = tuple[int, int]

NOTES = {
    "system_folded": "system text shown as part of the first user turn",
    "reasoning_removed": "reasoning removed, since prompts leave no room for it",
    "tool_definitions_removed": "tool definitions removed, since the template does not show them",
    "prompt_differs": "an answer skipped, since the prompt that asks for it is another text",
    "tools_not_shown": "tools, skipped, since the template does not show calls or results",
    "rejected_by_template": "turns that the template rejects or does not show, skipped",
}
"""What can happen to rows; the texts follow `rows with`."""

BARE = {"role", "content", "trained"}  # keys of a message that is only a text
PROBE = re.compile(r"tm0probe(\d+)x")
USER, ANSWER = {"role": "user", "content": "tm0user"}, {"role": "assistant", "content": "tm0answer"}
REASONING = "tm0reasoning"
REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")  # of different templates

# Reasoning at the start of an answer; some models write only the end of the block.
THINKING = re.compile(r"\A\s*(?:<think>)?(?:(?!<think>).)*?</think>\s*", re.DOTALL)
TAGS = re.compile(r"</?think>")

# The last private-use plane of Unicode: characters without a meaning.
PRIVATE = range(0x100000, 0x10FFFE)


@dataclass(frozen=True)
class Rendered:
    """One conversation as the model sees it."""

    text: str  # special tokens that a message itself spells are replaced by stand-ins
    spans: list[Span]  # characters [start, end) of `text` that are trained on, one pair per trained answer
    stand_ins: dict[str, str]  # the special token behind each stand-in; empty for nearly every row
    answers: Sequence[str | None] = ()  # text of each trained answer; None if the template shows more than a text
    notes: Sequence[str] = ()  # keys of `NOTES`
    whole: "Rendered | None" = None  # the row before a part was cut off that is too long to be encoded

    def original(self, start: int, end: int) -> str:
        """Return a part of the text with the special tokens that the messages spell."""
        text = self.text[start:end]
        for character, token in self.stand_ins.items():
            text = text.replace(character, token)
        return text


@dataclass(frozen=True)
class Shape:
    """How the template shows a sequence of roles."""

    order: list[int]  # numbers of the turns in the order in which their texts are shown
    pieces: list[str]  # the text around them, one more than there are turns
    missing: set[str]  # roles of turns that are not shown
    prompted: bool  # whether what precedes each answer is the prompt that asks for it
    folded: bool  # whether the system text is shown as part of the first user turn


class Template:
    """A tokenizer's chat template, probed for each sequence of roles."""

    def __init__(self, tokenizer: Any) -> None:
        """Learn how the template begins and ends an answer.

        Raises:
            UserError: the template cannot render a question and its answer, or does not show their texts.
        """
        self.tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder.values()
        controls = sorted((token.content for token in added if token.special), key=len, reverse=True)
        self.special = re.compile("|".join(map(re.escape, controls)) or "(?!)")
        self._shapes: dict[tuple[str, ...], Shape | None] = {}
        self.lead = ""
        shape = self._shape(("user", "assistant"))
        if shape is None or shape.order != [0, 1]:
            raise UserError("model: its chat template does not show each turn's text once; choose another model")
        prompt = PROBE.split(self._render(_probes(("user",)), prompt=True) or "")[-1]
        rest = shape.pieces[1].removeprefix(prompt)
        # White space that precedes an answer but does not end a prompt is generated by the model, so it is trained.
        self.lead = rest if rest.isspace() else ""
        self.end = self._end_of_turn(shape.pieces[2]).strip()  # special token that ends an answer, or ""

    def overhead(self) -> int:
        """Return the tokens of the shortest conversation, the minimum of `max_length`."""
        text = self._render([{"role": "user", "content": "a"}, {"role": "assistant", "content": "a"}])
        return len(self.tokenizer(text, add_special_tokens=False).input_ids)

    def prompt(self, messages: Messages, answer: str = "") -> Rendered:
        """Return a conversation up to the start of the answer, as in generation, and the answer if there is one.

        The answer begins with the white space that precedes it in training.

        Raises:
            UserError: the template rejects the conversation.
        """
        (*replaced, last), stand_ins = self.replace_special([*messages, {"role": "assistant", "content": answer}])
        text = self._render(replaced, prompt=True)
        if text is None:
            roles = ", ".join(message["role"] for message in messages)
            raise UserError(f"model: its chat template cannot render turns of {roles}; choose another model")
        if not answer:
            return Rendered(text, [], stand_ins)
        whole = text + self.lead + last["content"]
        return Rendered(whole, [(len(text), len(whole))], stand_ins)

    def render(self, conversations: Sequence[Messages], tools: Sequence[Tools] | None = None) -> list[Rendered]:
        """Return each conversation's text and the characters that are trained on, none for a row that is skipped.

        Messages are as `full_messages` returns them; `tools` are those that each conversation may call.
        """
        given = tools or [None] * len(conversations)
        return [self._rendered(messages, own) for messages, own in zip(conversations, given, strict=True)]

    def _rendered(self, conversation: Messages, tools: Tools) -> Rendered:
        notes: list[str] = []
        unusual = tools or any(len(message) > 2 or "think>" in message["content"] for message in conversation)
        if unusual:
            fitted = self._fit(conversation, tools)
            if isinstance(fitted, str):
                return _skipped(fitted)
            conversation, tools, notes = fitted
        messages, stand_ins = self.replace_special(conversation)
        text = self._render(messages, tools)
        shape = self._shape(tuple(message["role"] for message in messages))
        missing = shape.missing if shape else set()
        calls = any(message.get("tool_calls") for message in messages)
        if text is None or (not calls and (shape is None or missing)):
            return _skipped("tools_not_shown" if missing == {"tool"} else "rejected_by_template")
        walked = self._walk(text, messages, shape) if shape and tools is None else None
        lost = _not_shown(text, messages) if unusual or walked is None else None
        if lost and lost != "reasoning_removed":
            return _skipped(lost)
        notes = sorted({*notes, *([lost] if lost else []), *(["system_folded"] if shape and shape.folded else [])})
        spans = self._step_by_step(text, messages, tools) if walked is None else walked
        kept = {number: span for number, span in spans.items() if messages[number].get("trained", True)}
        if None in kept.values():
            notes.append("prompt_differs")
        located = {number: span for number, span in kept.items() if span}
        # A template shows reasoning and calls in its own way, so those answers are not compared with their texts.
        bare = shape is not None and shape.prompted
        answers = [
            message["content"] if bare and message.keys() <= BARE and "think>" not in message["content"] else None
            for message in (conversation[number] for number in located)
        ]
        return Rendered(text, list(located.values()), stand_ins, answers, notes)

    def _fit(self, messages: Messages, tools: Tools) -> tuple[Messages, Tools, list[str]] | str:
        """Return the messages and tools as the template takes them, and notes; or the note of a row it cannot show."""
        notes = set()
        fitted = []
        for message in messages:
            fitted.append(message := dict(message))
            reasoning = message.pop("reasoning_content", None)
            if reasoning and self._reasoning_key:
                message[self._reasoning_key] = reasoning
            elif reasoning:
                notes.add("reasoning_removed")
            if message["role"] == "assistant" and not self._shows_think_blocks and THINKING.match(message["content"]):
                message["content"] = THINKING.sub("", message["content"])
                notes.add("reasoning_removed")
                if not message["content"] and not message.get("tool_calls"):
                    message["trained"] = False
            if message.get("tool_calls"):
                if self._arguments is None:
                    return "tools_not_shown"
                calls = deepcopy(message["tool_calls"])
                for function in (call["function"] for call in calls if self._arguments is str):
                    function["arguments"] = json.dumps(function["arguments"], ensure_ascii=False)
                message["tool_calls"] = calls
        if tools and not self._shows_definitions:
            tools = None
            notes.add("tool_definitions_removed")
        return fitted, tools, sorted(notes)

    @cached_property
    def _reasoning_key(self) -> str | None:
        """The key of an answer's reasoning, if the template shows it after the answer's prompt; else None."""
        return next((key for key in REASONING_KEYS if self._shows_reasoning({key: REASONING})), None)

    @cached_property
    def _shows_think_blocks(self) -> bool:
        return self._shows_reasoning({"content": f"<think>\n{REASONING}\n</think>\n\ntm0answer"})

    def _shows_reasoning(self, keys: dict[str, str]) -> bool:
        """Whether an answer with these keys is shown with its reasoning, after its prompt."""
        prompt = self._render([USER], prompt=True) or ""
        text = self._render([USER, ANSWER | keys]) or ""
        return text.startswith(prompt) and REASONING in text[len(prompt) :]

    @cached_property
    def _arguments(self) -> type | None:
        """The type of a call's arguments, dict or str, if the template shows calls and results; else None."""
        for given in ({"place": "tm0argument"}, '{"place": "tm0argument"}'):
            call = {"id": "call00001", "type": "function", "function": {"name": "tm0function", "arguments": given}}
            result = {"role": "tool", "content": "tm0result", "name": "tm0function", "tool_call_id": "call00001"}
            calls = {"role": "assistant", "content": "", "tool_calls": [call]}
            text = self._render([USER, calls, result, ANSWER]) or ""
            if all(word in text for word in ("tm0function", "tm0argument", "tm0result", "tm0answer")):
                return type(given)
        return None

    @cached_property
    def _shows_definitions(self) -> bool:
        parameters = {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]}
        function = {"name": "tm0function", "description": "tm0tool", "parameters": parameters}
        return "tm0function" in (self._render([USER, ANSWER], [{"type": "function", "function": function}]) or "")

    def _render(self, messages: Messages, tools: Tools = None, prompt: bool = False) -> str | None:
        """Return the text of a conversation; None if the template rejects it."""
        try:
            text = self.tokenizer.apply_chat_template(messages, tools, tokenize=False, add_generation_prompt=prompt)
        except Exception:  # a template is a program and can raise anything
            return None
        return str(text)

    def replace_special(self, messages: Messages) -> tuple[Messages, dict[str, str]]:
        """Replace special tokens that a text spells by unused characters.

        The template's own control tokens then differ from text that looks like them, whatever a template does with it.
        """
        texts = [message["content"] if len(message) == 2 else " ".join(_leaves(message)) for message in messages]
        found = {token for text in texts for token in self.special.findall(text)}
        if not found:
            return messages, {}
        used = {character for text in texts for character in text}
        free = (chr(code) for code in PRIVATE if chr(code) not in used)
        stand_ins = dict(zip(sorted(found), free, strict=False))

        def replaced(value: Any) -> Any:
            if isinstance(value, str):
                return self.special.sub(lambda match: stand_ins[match.group()], value)
            if isinstance(value, list):
                return [replaced(entry) for entry in value]
            return {key: replaced(entry) for key, entry in value.items()} if isinstance(value, dict) else value

        return replaced(messages), {character: token for token, character in stand_ins.items()}

    def _shape(self, roles: tuple[str, ...]) -> Shape | None:
        """Return how the template shows these roles; None if it rejects them."""
        if roles not in self._shapes:
            probes = _probes(roles)
            text = self._render(probes)
            self._shapes[roles] = None if text is None else self._shape_of(probes, text)
        return self._shapes[roles]

    def _shape_of(self, probes: Messages, text: str) -> Shape:
        parts = PROBE.split(text)
        prompted = True
        for number, probe in enumerate(probes):
            if probe["role"] == "assistant":
                prompt = self._render(probes[:number], prompt=True) or ""
                rest = text.removeprefix(prompt) if text.startswith(prompt) else ""
                prompted = prompted and rest.lstrip().startswith(probe["content"])
        folded = False
        if [probe["role"] for probe in probes[:2]] == ["system", "user"]:
            together = {"role": "user", "content": f"{probes[0]['content']}\n\n{probes[1]['content']}"}
            folded = self._render([together, *probes[2:]]) == text
        order = [int(number) for number in parts[1::2]]
        missing = {probe["role"] for number, probe in enumerate(probes) if number not in order}
        return Shape(order, parts[::2], missing, prompted, folded)

    def _walk(self, text: str, messages: Messages, shape: Shape) -> dict[int, Span | None] | None:
        """Find the answers by the pieces around them; None unless the whole text is accounted for."""
        if not shape.prompted or shape.missing or len(shape.order) != len(messages):
            return None
        if not text.startswith(shape.pieces[0]):
            return None
        position, spans = len(shape.pieces[0]), dict[int, Span | None]()
        for number, before, after in zip(shape.order, shape.pieces, shape.pieces[1:], strict=False):
            content = messages[number]["content"]
            if not text.startswith(content + after, position):
                content = content.strip()
            if not text.startswith(content + after, position):
                return None
            end = position + len(content)
            if messages[number]["role"] == "assistant":
                lead = len(self.lead) if before.endswith(self.lead) else 0
                spans[number] = (position - lead, end + len(self._end_of_turn(after)))
            position = end + len(after)
        return spans if position == len(text) else None

    def _end_of_turn(self, piece: str) -> str:
        """Return the special token that follows an answer directly, with the white space before it."""
        match = self.special.search(piece)
        return piece[: match.end()] if match and not piece[: match.start()].strip() else ""

    def _step_by_step(self, text: str, messages: Messages, tools: Tools) -> dict[int, Span | None]:
        """Find each answer, by the number of its turn, as the text that rendering it adds to its prompt.

        None stands for an answer that its prompt does not precede.
        """
        spans = dict[int, Span | None]()
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            spans[number] = None
            before = self._render(messages[:number], tools, prompt=True)
            after = self._render(messages[: number + 1], tools)
            if before is None or after is None or not (text.startswith(before) and after.startswith(before)):
                continue
            last = max(self.special.finditer(after, len(before)), key=lambda match: match.end(), default=None)
            end = last.start() if last and not after[last.end() :].strip() else len(after)
            # Some templates end a turn with another token if it is not the last one.
            if text.startswith(after[:end]):
                spans[number] = (len(before), end + len(self._end_of_turn(text[end:])))
        return spans


def _skipped(note: str) -> Rendered:
    return Rendered("", [], {}, notes=[note])


@lru_cache(8)
def end_of_turn(tokenizer: Any) -> int | None:
    """Return the token that ends an answer; None if the chat template ends answers without a special token."""
    end = Template(tokenizer).end
    return tokenizer.convert_tokens_to_ids(end) if end else None


def _probes(roles: tuple[str, ...]) -> Messages:
    """Return a conversation whose texts can be recognised by their numbers."""
    return [{"role": role, "content": f"tm0probe{number}x"} for number, role in enumerate(roles)]


def _not_shown(text: str, messages: Messages) -> str | None:
    """Return the note of a conversation of which a rendered text lacks a part; None if it shows all of it."""
    lost = None
    for message in messages:
        calls = message.get("tool_calls", ())
        values = [value for call in calls for value in _leaves(call["function"])]
        block = THINKING.match(message["content"]) if message["role"] == "assistant" else None
        answer = message["content"][block.end() :] if block else message["content"]
        if not all(_shows(text, part) for part in [*TAGS.split(answer), *values]):
            return "tools_not_shown" if calls or message["role"] == "tool" else "rejected_by_template"
        reasoning = [message.get(key, "") for key in REASONING_KEYS] + TAGS.split(block.group() if block else "")
        lost = lost if all(_shows(text, part) for part in reasoning) else "reasoning_removed"
    return lost


def _shows(text: str, part: str) -> bool:
    """Tell whether a text shows another one, possibly as JSON."""
    part = part.strip()
    return part in text or any(json.dumps(part, ensure_ascii=ascii_)[1:-1] in text for ascii_ in (False, True))


def _leaves(value: Any) -> list[str]:
    """Return the texts and numbers in a nested value."""
    if isinstance(value, dict | list):
        return [leaf for entry in (value.values() if isinstance(value, dict) else value) for leaf in _leaves(entry)]
    return [value] if isinstance(value, str) else [str(value)] if type(value) in (int, float) else []
