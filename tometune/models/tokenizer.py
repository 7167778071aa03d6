"""The tokenizer of a model, with a chat template whose prompt for an answer is the text that precedes it in training.

Training, scoring, chat, exports and other programs all read `tokenizer.chat_template`. A change that all of them need
is therefore made in the template's own text.
"""

import json
import logging
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from tometune.common.errors import UserError
from tometune.common.hub import hub_errors
from tometune.models.source import ModelSource

log = logging.getLogger(__name__)

USER, ANSWER, SYSTEM = "tm0user", "tm0answer", "tm0system"  # texts that no template contains

# Templates of vision models show no plain text, only lists of parts.
TEXT_AS_PARTS = (
    "{%- set parts = namespace(messages=[]) %}{%- for message in messages %}{%- if message.content is string %}"
    '{%- set message = dict(message, content=[{"type": "text", "text": message.content}]) %}{%- endif %}'
    "{%- set parts.messages = parts.messages + [message] %}{%- endfor %}{%- set messages = parts.messages %}"
)
SYSTEM_IN_USER = (
    '{%- if messages | length > 1 and messages[0].role == "system" and messages[1].role == "user" %}'
    '{%- set messages = [dict(messages[1], content=messages[0].content ~ "\\n\\n" ~ messages[1].content)] '
    "+ messages[2:] %}{%- endif %}"
)
OWN_PROMPT = (
    "{%- set before_answer = add_generation_prompt is defined and add_generation_prompt %}"
    "{%- set add_generation_prompt = false %}"
)


def load_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase:
    """Return the model's tokenizer, ready for training and generation.

    Raises:
        UserError: the hub does not have it, or it has no chat template or no end-of-turn token.
    """
    model = source.config
    with hub_errors("model.id", model.id):
        tokenizer = AutoTokenizer.from_pretrained(source.location, revision=source.revision)
    if not isinstance(tokenizer.chat_template, str):
        raise UserError(f"model.id={model.id}: its tokenizer has no chat template; pick the instruct or chat variant")
    if tokenizer.eos_token_id is None:
        raise UserError(f"model.id={model.id}: its tokenizer has no end-of-sequence token; pick another model")
    tokenizer.chat_template = pin_date(adapt(tokenizer, model.thinking), model.date_string)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # never trained on: labels of padding are -100
    tokenizer.padding_side = "right"
    return tokenizer


def pin_date(template: str, date: str) -> str:
    """Return a chat template that prints `date` instead of today's.

    It becomes part of everything saved with the template. The templates of Llama 3.1 and 3.2 use the variable
    `date_string` and otherwise the clock.
    """
    if "date_string" not in template and "strftime_now" not in template:
        return template
    quoted = date.replace("\\", "\\\\").replace('"', '\\"')
    pin = f'{{%- set date_string = "{quoted}" %}}'
    return template if template.startswith(pin) else pin + template


def adapt(tokenizer: Any, thinking: bool) -> str:
    """Return the tokenizer's chat template with what it lacks; most templates are returned as they are.

    - A template that changes earlier answers when later turns are added, or that does not end the last answer, is
      replaced by TRL's variant of it, if there is one.
    - Messages become lists of parts if the template shows only these.
    - A system text is put before the first user text if the template has no system turn.
    - The generation prompt becomes the text that the template puts before an answer, e.g. with an empty
      `<think>` block; but not with `thinking`, where the model writes that block itself.
    """
    template: str = tokenizer.chat_template
    user, answer = {"role": "user", "content": USER}, {"role": "assistant", "content": ANSWER}

    def render(text: str, *messages: dict[str, Any], prompt: bool = False) -> str:
        try:
            shown: str = tokenizer.apply_chat_template(
                list(messages), chat_template=text, tokenize=False, add_generation_prompt=prompt
            )
        except Exception:  # a template is a program and can raise anything
            return ""
        return shown

    first = render(template, user, answer)
    header, _, end = first.partition(ANSWER)
    if first and not (end.strip() and render(template, user, answer, user, answer).startswith(header + ANSWER)):
        variant = _training_variant(template)
        shown = render(variant, user, answer)
        if shown == first or (not end.strip() and shown.startswith(first)):
            template = variant
    if USER not in render(template, user, answer) and USER in render(TEXT_AS_PARTS + template, user, answer):
        template = TEXT_AS_PARTS + template
    system = {"role": "system", "content": SYSTEM}
    if SYSTEM not in render(template, system, user, answer):
        folded = SYSTEM_IN_USER + template
        if SYSTEM in render(folded, system, user, answer):
            template = folded
            _log_once("model: its chat template has no system turn; system texts are put before the first user text")
    context, own = render(template, user), render(template, user, prompt=True)
    rest = render(template, user, answer).removeprefix(context)
    header, shown, _ = rest.partition(ANSWER)
    added = (context + header).removeprefix(own)
    # White space before an answer is often part of its first token, so the model has to write it.
    if thinking or not shown or not added.strip():
        return template
    changed = (
        f"{OWN_PROMPT}{template}{{% if before_answer %}}{{{{ {json.dumps(header, ensure_ascii=False)} }}}}{{% endif %}}"
    )
    if render(changed, user, answer) != context + rest or render(changed, user, prompt=True) != context + header:
        return template
    _log_once(
        f"model: prompts end in {header!r} as in training, instead of {own.removeprefix(context)!r}; "
        "model.thinking=true keeps the latter"
    )
    return changed


@cache
def _training_variant(template: str) -> str:
    """Return TRL's training variant of a template, without the tags that only Python reads; or the template itself."""
    spec = find_spec("trl")  # found, not imported: Unsloth has to be imported before TRL
    folder = Path(str(spec.origin)).parent / "chat_templates" if spec else Path()
    for variant in folder.glob("*_training.jinja"):
        original = variant.with_name(variant.name.replace("_training", ""))
        if original.is_file() and original.read_text(encoding="utf-8") == template:
            text = variant.read_text(encoding="utf-8")
            for tag, plain in (("generation", "if true"), ("endgeneration", "endif")):  # for readers in other languages
                text = re.sub(rf"\{{%(-?)\s*{tag}\s*(-?)%\}}", rf"{{%\1 {plain} \2%}}", text)
            return text
    return template


@cache
def _log_once(message: str) -> None:
    log.info(message)
