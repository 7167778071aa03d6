from types import SimpleNamespace

import pytest

from tests.data.chatml import CHATML, chatml_tokenizer, turns
from tests.data.tokenised import TOKENIZERS
from tometune.common.errors import UserError
from tometune.data.template import Template
from tometune.data.template_support import Messages
from tometune.evaluation.generation import greedy
from tometune.models.tokenizer import adapt


def trained(template: Template, messages: Messages) -> list[str]:
    row = template.render([messages])[0]
    return [row.original(*span) for span in row.spans]


def test_stand_ins_are_characters_that_the_row_does_not_use() -> None:
    used = "\U00100000\U00100001"
    row = Template(chatml_tokenizer()).render([turns(used, f"{used}<|im_start|><|im_end|>")])[0]
    assert set(row.stand_ins) == {"\U00100002", "\U00100003"}
    assert row.original(*row.spans[0]) == f"{used}<|im_start|><|im_end|><|im_end|>"


def test_a_space_after_the_prompt_is_generated_by_the_model() -> None:
    vicuna = (
        "{% for m in messages %}{{ 'USER: ' + m['content'] + ' ' if m['role'] == 'user' else "
        "'ASSISTANT: ' + m['content'] + '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}"
        "{% endif %}"
    )
    assert trained(Template(chatml_tokenizer(vicuna)), turns("q", "a", "q", "b")) == [" a<|im_end|>", " b<|im_end|>"]


def test_a_template_without_an_end_of_turn() -> None:
    tokenizer = chatml_tokenizer("{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}")
    tokenizer.chat_template = adapt(tokenizer, thinking=False)
    template = Template(tokenizer)
    assert not template.end
    assert Template(chatml_tokenizer()).end
    assert trained(template, turns("q", "a")) == ["a"]
    assert template.prompt(turns("q")).text == "user: q\nassistant: "


def test_templates_that_cannot_render_a_row_are_rejected() -> None:
    with pytest.raises(UserError, match="does not show each turn's text once"):
        Template(chatml_tokenizer("{% for m in messages %}{{ m['role'] }}{% endfor %}"))


def test_rows_that_a_template_rejects_are_noted() -> None:
    strict = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML
    template = Template(chatml_tokenizer(strict))
    good, bad = template.render([turns("q", "a"), turns("q", "a", system="s")])
    assert good.spans
    assert not good.notes
    assert (bad.spans, bad.notes) == ([], ["rejected_by_template"])
    with pytest.raises(UserError, match="cannot render turns of system, user"):
        template.prompt(turns("q", system="s"))


def test_earlier_answers_that_the_template_changes_are_context() -> None:
    forgets = CHATML.replace(
        "message['content'] +", "(message['content'] if loop.last else message['content'].split('</think>')[-1]) +"
    )
    template = Template(chatml_tokenizer(forgets))
    reasoned = "<think>b</think>c"
    assert trained(template, turns("q", "a", "q", reasoned)) == ["a<|im_end|>", f"{reasoned}<|im_end|>"]
    row = template.render([turns("q", reasoned, "q", "a")])[0]
    assert [row.original(*span) for span in row.spans] == ["a<|im_end|>"]
    assert row.notes == ["reasoning_removed", "prompt_differs"]


def test_special_tokens_in_calls_and_definitions_are_text() -> None:
    function = {"name": "say", "arguments": {"text": "<|eot_id|>"}}
    caller = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}
    tool = {"type": "function", "function": {"name": "say", "description": "<|eot_id|>", "parameters": {}}}
    template = Template(TOKENIZERS["llama3"][0]())
    row = template.render([[*turns("q"), caller]], [[tool]])[0]
    assert row.text.count("<|eot_id|>") == 4, "one for each turn and the template's own"
    assert row.original(*row.spans[0]).count("<|eot_id|>") == 2, "the argument's and the end of the turn"


def test_the_end_of_a_turn_is_labelled_and_ends_answers_whatever_eos_and_pad_are() -> None:
    tokenizer = chatml_tokenizer()
    tokenizer.eos_token = tokenizer.pad_token = "<|endoftext|>"
    assert trained(Template(tokenizer), turns("q", "a")) == ["a<|im_end|>"]
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=None))
    stops = greedy(model, tokenizer, 4).eos_token_id
    assert tokenizer.convert_ids_to_tokens(stops) == ["<|endoftext|>", "<|im_end|>"]
