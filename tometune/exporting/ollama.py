"""Ollama's Modelfile for a GGUF, with the chat template in Go's syntax."""

from collections.abc import Sequence

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

TURNS = (
    ("<|im_start|>{role}\n", "<|im_end|>\n"),  # ChatML: SmolLM2, Qwen
    ("<|start_header_id|>{role}<|end_header_id|>\n\n", "<|eot_id|>"),  # Llama 3
    ("<|{role}|>\n", "<|end|>\n"),  # Phi-3
    ("<|{role}|>\n", "</s>\n"),  # Zephyr
)
"""Text before and after each message, by family of chat templates. What precedes the system message is taken from the
model's own template: Llama 3.2 writes dates there."""


def modelfile(file: str, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str], context: int) -> str:
    """Return Ollama's Modelfile for a GGUF next to it; `stops` end a turn, `context` is the model's longest context."""
    template, system = go_template(tokenizer) or ("", "")
    lines = [
        f"FROM ./{file}",
        f'TEMPLATE """{template}"""' if template else "# No TEMPLATE: Ollama takes the one inside the GGUF file.",
        *([f'SYSTEM """{system}"""'] if system else []),
        *(f'PARAMETER stop "{stop}"' for stop in stops),
        "PARAMETER temperature 0",
        f"PARAMETER num_ctx {min(context, 4096)}",  # more would cost memory
    ]
    return "\n".join(lines) + "\n"


def go_template(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str] | None:
    """Return the chat template in Go's syntax and its default system message; None for an unknown family of templates.

    A template is accepted only if it renders three conversations exactly like the model's own.
    """
    try:
        found = (_of_family(tokenizer, before, after) for before, after in TURNS)
        return next((one for one in found if one is not None), None)
    except TemplateError:  # e.g. a template that refuses system messages
        return None


def _of_family(tokenizer: PreTrainedTokenizerBase, before: str, after: str) -> tuple[str, str] | None:
    """Return the Go template and default system message if the tokenizer's template has these turns."""
    user, assistant = before.format(role="user"), before.format(role="assistant")
    # llama.cpp adds the begin-of-text token itself. SmolLM2's is the opening of a turn, which has to stay.
    bos = "" if user.startswith(tokenizer.bos_token or "") else tokenizer.bos_token

    def own(*messages: tuple[str, str]) -> str:
        rows = [{"role": role, "content": content} for role, content in messages]
        text: str = tokenizer.apply_chat_template(rows, tokenize=False, add_generation_prompt=True)
        return text.removeprefix(bos)

    opening = own(("system", "⁂S⁂"), ("user", "⁂U⁂")).split("⁂S⁂")[0]
    default = own(("user", "⁂U⁂")).split("⁂U⁂")[0].removesuffix(user)
    if default and not (default.startswith(opening) and default.endswith(after)):
        return None
    always, system = bool(default), default.removeprefix(opening).removesuffix(after)
    conversations = (
        [("user", "one two")],
        [("system", "four five"), ("user", "one two")],
        [("user", "one two"), ("assistant", "three"), ("user", "six")],
    )
    for messages in conversations:
        given = dict(messages).get("system", system)
        turns = {"user": user, "assistant": assistant}
        expected = f"{opening}{given}{after}" if given or always else ""
        expected += "".join(f"{turns[role]}{content}{after}" for role, content in messages if role in turns)
        if own(*messages) != expected + assistant:
            return None
    turn = f"{opening}{{{{ .System }}}}{after}"
    return (
        f"{turn if always and not system else '{{ if .System }}' + turn + '{{ end }}'}"
        "{{ range .Messages }}"
        f'{{{{ if eq .Role "user" }}}}{user}{{{{ .Content }}}}{after}'
        f'{{{{ else if eq .Role "assistant" }}}}{assistant}{{{{ .Content }}}}{after}{{{{ end }}}}'
        f"{{{{ end }}}}{assistant}"
    ), system
