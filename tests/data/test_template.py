import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.chatml import CHATML, DEFAULT_SYSTEM, chatml_tokenizer, turns
from tests.fixtures.llama3 import TEMPLATES, llama3_tokenizer
from tometune.common.errors import UserError
from tometune.data.template import Messages, Template

NEED_PARTS = {"idefics3", "idefics3_training", "llava_next", "llava_next_training"}
"""Templates of image models, which take contents as lists of parts and no text."""


def trained(template: Template, messages: Messages) -> list[str]:
    row = template.render([messages])[0]
    return [row.original(*span) for span in row.spans]


def test_the_answers_and_their_ends_are_trained_on_and_nothing_else() -> None:
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


def test_white_space_is_trained_on_where_the_template_keeps_it() -> None:
    assert trained(Template(chatml_tokenizer()), turns(" q ", "\n\n a \n")) == ["\n\n a \n<|im_end|>"]


def test_an_end_of_turn_in_a_text_does_not_end_the_turn() -> None:
    text = "a<|im_end|>\n<|im_start|>user\nb"
    template = Template(chatml_tokenizer())
    assert trained(template, turns(text, text)) == [f"{text}<|im_end|>"]
    row = template.render([turns(text, text)])[0]
    assert len(template.special.findall(row.text)) == 6, "two for each of system, user and assistant"


def test_stand_ins_are_characters_that_the_row_does_not_use() -> None:
    used = "\U00100000\U00100001"
    row = Template(chatml_tokenizer()).render([turns(used, f"{used}<|im_start|><|im_end|>")])[0]
    assert set(row.stand_ins) == {"\U00100002", "\U00100003"}
    assert row.original(*row.spans[0]) == f"{used}<|im_start|><|im_end|><|im_end|>"


def test_llama3_trims_and_dates() -> None:
    template = Template(llama3_tokenizer())
    row = template.render([turns("  hi\n", "\n hello ", "more", "  bye")])[0]
    assert "Today Date: 26 Jul 2024" in row.text
    assert [row.original(*span) for span in row.spans] == ["hello<|eot_id|>", "bye<|eot_id|>"]


def test_a_rewritten_tool_turn_goes_step_by_step() -> None:
    tool = {"role": "tool", "content": 'a "quoted"\n<|eot_id|>'}  # the template writes it as JSON
    messages = [*turns("q", "call"), tool, {"role": "assistant", "content": "done"}]
    template = Template(llama3_tokenizer())
    row = template.render([messages])[0]
    assert template._walk(row.text, messages) is None
    assert [row.original(*span) for span in row.spans] == ["call<|eot_id|>", "done<|eot_id|>"]
    assert template.special.findall(row.text).count("<|eot_id|>") == 5, "one for each turn and the template's own"


def test_step_by_step_finds_what_the_walk_finds() -> None:
    for tokenizer in (chatml_tokenizer(), llama3_tokenizer()):
        template = Template(tokenizer)
        for messages in (turns("q", "a"), turns("q", "a", "q", "a"), turns("q", "é😀", "  q", "a", system="s")):
            row = template.render([messages])[0]
            assert template._walk(row.text, messages) == template._step_by_step(row.text, messages)


@pytest.mark.parametrize("name", sorted(path.stem for path in TEMPLATES.glob("*.jinja")))
def test_every_family_s_template_is_walked_or_refused_in_one_line(name: str) -> None:
    """The control tokens of other families are plain text to this tokenizer but for ChatML's; the texts still count."""
    tokenizer = chatml_tokenizer((TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8"))
    if name in NEED_PARTS:
        with pytest.raises(UserError, match="model: its chat template"):
            Template(tokenizer)
        return
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<eos>", "</s>", "<|end|>", "<|return|>", "<|eot_id|>"]}
    )
    answers = ["first answer", "second answer"]
    found = trained(Template(tokenizer), turns("first question", answers[0], "second question", answers[1]))
    assert len(found) == 2
    for text, answer in zip(found, answers, strict=True):
        assert answer in text
        assert "question" not in text
        assert template_free(text.replace(answer, ""))


def template_free(left: str) -> bool:
    """Whether nothing but one control token and white space is left."""
    return left.strip() in {"", "<|im_end|>", "<eos>", "</s>", "<|end|>", "<|return|>", "<|eot_id|>"}


def test_a_space_that_the_prompt_does_not_end_with_is_for_the_model_to_write() -> None:
    vicuna = (
        "{% for m in messages %}{{ 'USER: ' + m['content'] + ' ' if m['role'] == 'user' else "
        "'ASSISTANT: ' + m['content'] + '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}"
        "{% endif %}"
    )
    assert trained(Template(chatml_tokenizer(vicuna)), turns("q", "a", "q", "b")) == [" a<|im_end|>", " b<|im_end|>"]


def test_a_template_that_ends_nothing_says_so() -> None:
    bare = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}"
    template = Template(chatml_tokenizer(bare))
    assert not template.ends
    assert Template(chatml_tokenizer()).ends
    assert trained(template, turns("q", "a")) == ["a"]


def test_a_template_that_shows_no_text_is_refused() -> None:
    with pytest.raises(UserError, match="does not show each turn's text once"):
        Template(chatml_tokenizer("{% for m in messages %}{{ m['role'] }}{% endfor %}"))


def test_a_template_that_refuses_a_role_names_the_roles() -> None:
    strict = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML
    template = Template(chatml_tokenizer(strict))
    with pytest.raises(UserError, match=r"turns of system, user, assistant \(no system role\)") as error:
        template.render([turns("q", "a"), turns("q", "a", system="s")])
    assert "\n" not in str(error.value)


def test_a_template_that_changes_earlier_turns_is_refused_for_such_rows() -> None:
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


PARTS = st.sampled_from(["a", " ", "\n", "é", "😀", "<|im_end|>", "<|im_start|>", "user\n", "|"])
TEXTS = st.lists(PARTS, max_size=8).map("".join)


@settings(max_examples=150, deadline=None)
@given(st.lists(TEXTS, min_size=2, max_size=6), st.none() | TEXTS, st.booleans())
def test_any_texts_are_found(contents: list[str], system: str | None, default_system: bool) -> None:
    messages = turns(*contents, system=system)
    template = Template(chatml_tokenizer(DEFAULT_SYSTEM + CHATML if default_system else CHATML))
    assert trained(template, messages) == [f"{text}<|im_end|>" for text in contents[1::2]]
