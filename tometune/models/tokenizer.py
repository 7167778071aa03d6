"""The tokenizer of a model, with a pinned date in its chat template."""

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from tometune.common.errors import UserError
from tometune.common.hub import hub_errors
from tometune.models.chat_template import adapt
from tometune.models.source import ModelSource


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
