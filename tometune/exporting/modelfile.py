"""Ollama's Modelfile: the chat template in Go's syntax, found by rendering the model's own, and its stop tokens."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

MARKS = {"system": "⁂S⁂", "user": "⁂U⁂", "assistant": "⁂A⁂"}
"""Texts that stand in for a message's, to see what the template puts around it."""


def modelfile(file: str, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str], context: int) -> str:
    """Return a Modelfile.

    Args:
        file: name of the GGUF beside it.
        tokenizer: with the chat template.
        stops: texts that end a turn.
        context: tokens the model was made for; Ollama gets 4,096 at most, for the memory's sake.
    """
    lines = [f"FROM ./{file}"]
    found = go_template(tokenizer)
    if found is None:
        lines.append("# No TEMPLATE: Ollama takes the one inside the GGUF file.")
    else:
        template, system = found
        lines.append(f'TEMPLATE """{template}"""')
        if system:
            lines.append(f'SYSTEM """{system}"""')
    lines += [f'PARAMETER stop "{stop}"' for stop in stops]
    lines += ["PARAMETER temperature 0", f"PARAMETER num_ctx {min(context, 4096)}"]
    return "\n".join(lines) + "\n"


def go_template(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str] | None:
    """Return the template in Go's syntax and the system message it puts in by itself; None where it has another form.

    That form is: the same text around every message of a role, a system message first or none. What is found is
    checked by rendering two more conversations with it.
    """
    try:
        pieces = _pieces(tokenizer)
    except (ValueError, IndexError):
        return None
    start, around, generation = pieces
    found = _default_system(tokenizer, start, around)
    if found is None:
        return None
    always, default = found
    for conversation in _tries():
        text = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
        if _rendered(conversation, start, around, generation, found) != text:
            return None
    (system_before, system_after), (user_before, user_after) = around["system"], around["user"]
    (assistant_before, assistant_after) = around["assistant"]
    opening = "" if start == tokenizer.bos_token else start  # llama.cpp puts the begin of text there by itself
    system = f"{system_before}{{{{ .System }}}}{system_after}"
    template = (
        f"{opening}{system if always else '{{ if .System }}' + system + '{{ end }}'}"
        "{{ range .Messages }}"
        f'{{{{ if eq .Role "user" }}}}{user_before}{{{{ .Content }}}}{user_after}'
        f'{{{{ else if eq .Role "assistant" }}}}{assistant_before}{{{{ .Content }}}}{assistant_after}{{{{ end }}}}'
        f"{{{{ end }}}}{generation}"
    )
    return template, default


def _pieces(tokenizer: PreTrainedTokenizerBase) -> tuple[str, dict[str, tuple[str, str]], str]:
    """Return what stands before everything, around each role's messages, and before the answer.

    Raises:
        ValueError: the marks are not in the rendered text as they were.
    """
    roles = ["system", "user", "assistant", "user", "assistant", "user"]
    messages = [{"role": role, "content": MARKS[role]} for role in roles]
    whole: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=False)
    asking: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    if not asking.startswith(whole):
        raise ValueError("the question is not at the end")
    after_user = whole[whole.rindex(MARKS["user"]) + len(MARKS["user"]) :]
    rest, between = whole, []
    for role in roles:
        before, rest = rest.split(MARKS[role], 1)
        between.append(before)
    assistant_before = between[2].removeprefix(after_user)
    assistant_after = _common_end(between[3], between[1])
    user_before = between[3].removeprefix(assistant_after)
    system_after = between[1].removesuffix(user_before)
    bos = tokenizer.bos_token or ""
    start = bos if between[0].startswith(bos) and not user_before.startswith(bos) else ""
    around = {
        "system": (between[0].removeprefix(start), system_after),
        "user": (user_before, after_user),
        "assistant": (assistant_before, assistant_after),
    }
    return start, around, asking[len(whole) :]


def _common_end(first: str, second: str) -> str:
    """Return what of `first` comes before the longest end it shares with `second`."""
    length = 0
    while length < min(len(first), len(second)) and first[-1 - length] == second[-1 - length]:
        length += 1
    shared = first[len(first) - length :]
    # Both end in <after a turn><before the user's>; the first of the two is the same text in both.
    half = first[: len(first) - length]
    return half or shared[: _turn_end(shared)]


def _turn_end(shared: str) -> int:
    """Return where a text of an end of turn and a beginning of turn is cut: before its last marker that opens one."""
    for opener in ("<|im_start|>", "<|start_header_id|>", "<start_of_turn>", "<|user|>", "<|"):
        if opener in shared:
            return shared.index(opener)
    return 0


def _default_system(
    tokenizer: PreTrainedTokenizerBase, start: str, around: dict[str, tuple[str, str]]
) -> tuple[bool, str] | None:
    """Return whether there always is a system turn, and its text where none is given; None for something else."""
    messages = [{"role": "user", "content": MARKS["user"]}]
    whole: str = tokenizer.apply_chat_template(messages, tokenize=False)
    opening = whole.split(MARKS["user"])[0].removeprefix(start)
    before, after = around["system"]
    bare = opening.removesuffix(around["user"][0])
    if not bare:
        return False, ""
    if bare.startswith(before) and bare.endswith(after):
        text = bare[len(before) : len(bare) - len(after)]
        return not text, text
    return None


def _rendered(
    messages: Sequence[dict[str, str]],
    start: str,
    around: dict[str, tuple[str, str]],
    generation: str,
    default: tuple[bool, str],
) -> str:
    """Render a conversation as the Go template does."""
    has_system = messages[0]["role"] == "system"
    turns = [*messages] if has_system or not any(default) else [{"role": "system", "content": default[1]}, *messages]
    return start + "".join(around[m["role"]][0] + m["content"] + around[m["role"]][1] for m in turns) + generation


def _tries() -> list[list[dict[str, str]]]:
    """Return conversations that a found template is checked with."""
    user, answer = {"role": "user", "content": "one two"}, {"role": "assistant", "content": "three"}
    return [[user], [{"role": "system", "content": "four five"}, user], [user, answer, user]]
