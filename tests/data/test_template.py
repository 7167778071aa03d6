import pytest

from tests.data.chatml import CHATML, chatml_tokenizer, turns
from tests.data.tokenised import TOKENIZERS
from tests.fixtures.llama3 import TEMPLATES
from tometune.common.errors import UserError
from tometune.data.template import Messages, Template

ENDS = ["<eos>", "</s>", "<|end|>", "<|return|>", "<|eot_id|>"]
NEED_PARTS = {"idefics3", "idefics3_training", "llava_next", "llava_next_training"}
"""Templates of image models, which take contents as lists of parts and no text."""


def trained(template: Template, messages: Messages) -> list[str]:
    row = template.render([messages])[0]
    return [row.original(*span) for span in row.spans]


def test_only_the_answers_and_their_ends_are_trained_on() -> None:
    template = Template(chatml_tokenizer())
    row = template.render([turns("hi", "hello", "and?", "bye")])[0]
    assert [row.original(*span) for span in row.spans] == ["hello<|im_end|>", "bye<|im_end|>"]
    left, position = "", 0
    for start, end in row.spans:
        left, position = left + row.text[position:start], end
    assert left + row.text[position:] == (
        "<|im_start|>system\nYou are SmolLM<|im_end|>\n"
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n\n"
        "<|im_start|>user\nand?<|im_end|>\n<|im_start|>assistant\n\n"
    )


def test_stand_ins_are_characters_that_the_row_does_not_use() -> None:
    used = "\U00100000\U00100001"
    row = Template(chatml_tokenizer()).render([turns(used, f"{used}<|im_start|><|im_end|>")])[0]
    assert set(row.stand_ins) == {"\U00100002", "\U00100003"}
    assert row.original(*row.spans[0]) == f"{used}<|im_start|><|im_end|><|im_end|>"


def test_llama3_trims_and_dates() -> None:
    template = Template(TOKENIZERS["llama3"][0]())
    row = template.render([turns("  hi\n", "\n hello ", "more", "  bye")])[0]
    assert "Today Date: 26 Jul 2024" in row.text
    assert [row.original(*span) for span in row.spans] == ["hello<|eot_id|>", "bye<|eot_id|>"]


def test_a_rewritten_tool_turn_goes_step_by_step() -> None:
    tool = {"role": "tool", "content": 'a "quoted"\n<|eot_id|>'}  # the template writes it as JSON
    messages = [*turns("q", "call"), tool, {"role": "assistant", "content": "done"}]
    template = Template(TOKENIZERS["llama3"][0]())
    row = template.render([messages])[0]
    assert template._walk(row.text, messages) is None
    assert [row.original(*span) for span in row.spans] == ["call<|eot_id|>", "done<|eot_id|>"]
    assert template.special.findall(row.text).count("<|eot_id|>") == 5, "one for each turn and the template's own"


def test_step_by_step_agrees_with_the_walk() -> None:
    for make, *_ in TOKENIZERS.values():
        template = Template(make())
        for messages in (turns("q", "a", "q", "a"), turns("q", "é😀", "  q", "a", system="s")):
            row = template.render([messages])[0]
            assert template._walk(row.text, messages) == template._step_by_step(row.text, messages)


@pytest.mark.parametrize("name", sorted(path.stem for path in TEMPLATES.glob("*.jinja")))
def test_the_template_of_every_family_is_supported_or_rejected(name: str) -> None:
    """This tokenizer knows only ChatML's control tokens, so those of other families are plain text."""
    tokenizer = chatml_tokenizer((TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8"))
    if name in NEED_PARTS:
        with pytest.raises(UserError, match="model: its chat template"):
            Template(tokenizer)
        return
    tokenizer.add_special_tokens({"additional_special_tokens": ENDS})
    answers = ["first answer", "second answer"]
    found = trained(Template(tokenizer), turns("first question", answers[0], "second question", answers[1]))
    assert len(found) == 2
    for text, answer in zip(found, answers, strict=True):
        before, _, after = text.partition(answer)
        assert before.strip() == ""
        assert after.strip() in {"", "<|im_end|>", *ENDS}


def test_a_space_after_the_prompt_is_generated_by_the_model() -> None:
    vicuna = (
        "{% for m in messages %}{{ 'USER: ' + m['content'] + ' ' if m['role'] == 'user' else "
        "'ASSISTANT: ' + m['content'] + '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}"
        "{% endif %}"
    )
    assert trained(Template(chatml_tokenizer(vicuna)), turns("q", "a", "q", "b")) == [" a<|im_end|>", " b<|im_end|>"]


def test_a_template_without_an_end_of_turn() -> None:
    bare = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}"
    template = Template(chatml_tokenizer(bare))
    assert not template.ends
    assert Template(chatml_tokenizer()).ends
    assert trained(template, turns("q", "a")) == ["a"]


def test_templates_that_cannot_render_a_row_are_rejected() -> None:
    with pytest.raises(UserError, match="does not show each turn's text once"):
        Template(chatml_tokenizer("{% for m in messages %}{{ m['role'] }}{% endfor %}"))
    strict = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML
    with pytest.raises(UserError, match=r"turns of system, user, assistant \(no system role\)") as error:
        Template(chatml_tokenizer(strict)).render([turns("q", "a"), turns("q", "a", system="s")])
    assert "\n" not in str(error.value)


def test_a_row_whose_earlier_turns_the_template_changes_is_rejected() -> None:
    forgets = CHATML.replace(
        "message['content'] +", "(message['content'] if loop.last else message['content'].split('</think>')[-1]) +"
    )
    template = Template(chatml_tokenizer(forgets))
    assert trained(template, turns("q", "a", "q", "<think>b</think>c")) == [
        "a<|im_end|>",
        "<think>b</think>c<|im_end|>",
    ]
    with pytest.raises(UserError, match="changes earlier turns"):
        template.render([turns("q", "<think>b</think>c", "q", "a")])
