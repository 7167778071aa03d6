from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tometune.data.conversations import fix_conversation, normalised

S, U, A, T = ("system", "s"), ("user", "u"), ("assistant", "a"), ("tool", "t")


@pytest.mark.parametrize(
    ("turns", "fixed", "reasons"),
    [
        ([S, U, A], [S, U, A], set()),
        ([U, A, T, T, A], [U, A, T, T, A], set()),
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
        ([U], [], {"no_assistant_turn"}),
        ([S, A], [], {"no_assistant_turn"}),
        ([], [], {"no_assistant_turn"}),
    ],
)
def test_policies(turns, fixed, reasons):
    assert fix_conversation(turns) == (fixed, reasons)


def test_texts_keep_their_own_white_space():
    turns = [("user", "  def f():\n"), ("assistant", "\treturn 1\n\n")]
    assert fix_conversation(turns) == (turns, set())


TURNS = st.lists(
    st.tuples(st.sampled_from(["system", "user", "assistant", "tool"]), st.sampled_from(["", " ", "x", "y"]))
)


@given(TURNS)
def test_fixed_conversations_can_be_rendered_and_trained_on(turns):
    fixed, reasons = fix_conversation(turns)
    roles = [role for role, _ in fixed]
    assert bool(fixed) != ("no_assistant_turn" in reasons)
    if fixed:
        spoken = roles[1:] if roles[0] == "system" else roles
        assert spoken[0] == "user"
        assert roles[-1] == "assistant"
        assert "system" not in spoken
        assert all(a != b or a == "tool" for a, b in pairwise(roles))
        assert all(text.strip() for _, text in fixed)
        assert fix_conversation(fixed) == (fixed, set())
    if not reasons:
        assert fixed == [(role, text) for role, text in turns if role != "system" or text.strip()]


def test_normalised_text_folds_case_white_space_and_the_borders_of_turns():
    assert normalised([" Straße\n", "ist\t\tLANG "]) == "strasse ist lang"
    assert normalised(["a", "b"]) == normalised(["a b"])
    assert normalised(["ab"]) != normalised(["a b"])
