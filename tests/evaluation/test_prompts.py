import pytest

from tometune.common.errors import UserError
from tometune.evaluation.prompts import GAP, encode


def talk(text):
    return [{"role": "system", "content": "Be kind."}, {"role": "user", "content": text}]


def test_short_prompts_are_left_alone(tokenizer):
    prompt = encode(tokenizer, talk("Hello"), 100)
    assert prompt.text.endswith("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n")
    assert prompt.ids == tokenizer(prompt.text, add_special_tokens=False)["input_ids"]
    assert not prompt.shortened


@pytest.mark.parametrize("most", [45, 60, 61, 120])
def test_long_prompts_lose_their_middle(tokenizer, most):
    text = "START " + " ".join(f"word{n}" for n in range(100)) + " END"
    prompt = encode(tokenizer, talk(text), most)
    assert prompt.shortened
    assert most - 8 <= len(prompt.ids) <= most
    assert "Be kind." in prompt.text
    user = prompt.text.split("user\n")[1].split("<|im_end|>")[0]
    head, tail = user.split(GAP)
    assert text.startswith(head)
    assert text.endswith(tail)
    assert abs(len(head) - len(tail)) < 12


def test_a_cut_inside_a_character_leaves_no_half(tokenizer):
    for most in range(45, 60):
        assert "\ufffd" not in encode(tokenizer, talk("漢字🎉" * 50), most).text


def test_too_few_tokens_for_the_template(tokenizer):
    with pytest.raises(UserError, match=r"eval\.max_prompt_tokens=10: too few"):
        encode(tokenizer, talk("hello " * 50), 10)
