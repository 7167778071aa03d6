from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tometune.data.conversations import compared_texts, extras_of, fix_conversation, full_messages, normalised
from tometune.data.turns import Turn

S, U, A, T = ("system", "s"), ("user", "u"), ("assistant", "a"), ("tool", "t")
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
OTHER = {"type": "function", "function": {"name": "g", "arguments": {}}}
C, D, BOTH = {"tool_calls": [CALL]}, {"tool_calls": [OTHER]}, {"tool_calls": [CALL, OTHER]}
THOUGHT, CONTEXT, TWO = {"reasoning": "r"}, {"trained": False}, ("user", "u\n\nu")
LONE, REPLACED = {"reasoning": "\ud83d"}, {"reasoning": "\ufffd"}


@pytest.mark.parametrize(
    ("turns", "fixed", "reasons"),
    [
        ([S, U, A], [S, U, A], set()),
        ([U, A, T, T, A], [U, A, T, T, A], set()),
        ([("user", "  f\n"), ("assistant", "\ta\n")], [("user", "  f\n"), ("assistant", "\ta\n")], set()),
        ([("system", ""), U, A], [U, A], set()),
        ([S, S, U, A], [("system", "s\n\ns"), U, A], {"same_role_joined"}),
        ([U, A, S, U, A], [U, A, U, A], {"late_system_turn_removed"}),
        ([A, U, A], [U, A], {"leading_assistant_removed"}),
        ([A, S, U, A], [S, U, A], {"leading_assistant_removed"}),
        ([T, U, A], [U, A], {"leading_tool_removed"}),
        ([U, U, A, A], [("user", "u\n\nu"), ("assistant", "a\n\na")], {"same_role_joined"}),
        ([U, ("assistant", " \n"), U, A], [("user", "u\n\nu"), A], {"empty_turn_removed", "same_role_joined"}),
        ([U, ("", ""), A], [U, A], {"empty_turn_removed"}),
        ([U, A, U], [U, A], {"trailing_turn_cut"}),
        ([U, A, T, U], [U, A], {"trailing_turn_cut"}),
        ([U, ("assistant", "a \ud83d b")], [U, ("assistant", "a \ufffd b")], {"broken_character_replaced"}),
        ([U, ("assistant", "", C)], [U, ("assistant", "", C)], set()),
        ([U, ("assistant", " ", C), T, A], [U, ("assistant", " ", C), T, A], set()),
        ([U, A, ("assistant", "", C)], [U, ("assistant", "a", C)], {"same_role_joined"}),
        ([U, ("assistant", "", C), ("assistant", "", D)], [U, ("assistant", "", BOTH)], {"same_role_joined"}),
        ([U, ("assistant", "", C), A], [U, ("assistant", "", C), A], set()),  # the text comes after the call
        ([U, A, ("assistant", "b", THOUGHT)], [U, A, ("assistant", "b", THOUGHT)], set()),
        ([U, ("assistant", "", THOUGHT), U, A], [TWO, A], {"reasoning_without_answer_removed", "same_role_joined"}),
        ([U, ("assistant", "a", CONTEXT), A], [U, ("assistant", "a", CONTEXT), A], set()),
        ([U, ("assistant", "a", CONTEXT)], [], {"no_trained_turn"}),
        ([U, ("assistant", "a", LONE)], [U, ("assistant", "a", REPLACED)], {"broken_character_replaced"}),
        ([U], [], {"no_assistant_turn"}),
        ([S, A], [], {"no_assistant_turn"}),
        ([], [], {"no_assistant_turn"}),
    ],
)
def test_policies(turns, fixed, reasons):
    assert fix_conversation([Turn(*turn) for turn in turns]) == ([Turn(*turn) for turn in fixed], reasons)


def test_extras_hold_what_messages_cannot_and_full_messages_put_it_back():
    turns = [Turn("user", "u"), Turn("assistant", "", {**C, **THOUGHT}), Turn("tool", "t", {"name": "f"})]
    turns.append(Turn("assistant", "a", CONTEXT))
    messages = [{"role": turn.role, "content": turn.text} for turn in turns]
    tools = [{"type": "function", "function": {"name": "f"}}]
    full, given = full_messages(messages, extras_of(turns, tools))
    assert given == tools
    assert full == [
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "", "tool_calls": [CALL], "reasoning_content": "r"},
        {"role": "tool", "content": "t", "name": "f"},
        {"role": "assistant", "content": "a", "trained": False},
    ]
    assert messages[3] == {"role": "assistant", "content": "a"}, "the row itself stays as it is"
    assert extras_of([Turn(*U), Turn(*A)], None) is None
    assert full_messages(messages, None) == (messages, None)


def test_rows_are_compared_by_everything_that_is_said():
    plain = [Turn(*U), Turn(*A)]
    assert list(compared_texts(plain, None)) == ["u", "a"]
    variants = [(plain, None), (plain, [{"function": {"name": "f"}}])]
    variants += [([Turn(*U), Turn("assistant", "a", extra)], None) for extra in (C, THOUGHT, {"tool_calls": [OTHER]})]
    assert len({normalised(compared_texts(*variant)) for variant in variants}) == len(variants)
    context = [Turn(*U), Turn("assistant", "a", CONTEXT)]
    assert normalised(compared_texts(context, None)) == normalised(compared_texts(plain, None))


ROLES = st.sampled_from(["system", "user", "assistant", "tool"])
TURNS = st.lists(st.builds(Turn, ROLES, st.sampled_from(["", " ", "x", "y"]), st.none()))


@given(TURNS)
def test_fixed_conversations_can_be_rendered_and_trained_on(turns):
    fixed, reasons = fix_conversation(turns)
    roles = [turn.role for turn in fixed]
    assert bool(fixed) != ("no_assistant_turn" in reasons)
    if fixed:
        spoken = roles[1:] if roles[0] == "system" else roles
        assert spoken[0] == "user"
        assert roles[-1] == "assistant"
        assert "system" not in spoken
        assert all(a != b or a == "tool" for a, b in pairwise(roles))
        assert all(turn.text.strip() for turn in fixed)
        assert fix_conversation(fixed) == (fixed, set())
    if not reasons:
        assert fixed == [turn for turn in turns if turn.role != "system" or turn.text.strip()]


def test_normalised_text_folds_case_white_space_and_the_borders_of_turns():
    assert normalised([" Straße\n", "ist\t\tLANG "]) == "strasse ist lang"
    assert normalised(["a", "b"]) == normalised(["a b"])
    assert normalised(["ab"]) != normalised(["a b"])
