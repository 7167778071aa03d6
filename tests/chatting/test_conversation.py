"""Conversations: what is sent, what fits, what is kept, and that an export is training data."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.chatting.fake import Words
from tometune.chatting.answering import answers, take
from tometune.chatting.conversation import Answer, Conversation
from tometune.chatting.engine import End, Settings
from tometune.chatting.fitting import GAP, fit
from tometune.chatting.session import Session
from tometune.common.errors import UserError
from tometune.config.data import RowFormat
from tometune.data.formats import format_of, reader
from tometune.data.readers import read_file

TEXTS = st.text(min_size=1, max_size=30).filter(lambda text: text.strip())


def talked(questions, models=("base", "tuned"), system=""):
    """A conversation in which each model echoed each question."""
    made = Conversation(list(models), system)
    engines = {side: Words(f"{model}: ") for side, model in enumerate(models)}
    for question in questions:
        turn = made.ask(question, 0)
        asked = {side: made.messages(side) for side in engines}
        for step in answers(engines, asked, Settings(), lambda: False):
            take(turn, step)
    return made


def test_each_model_is_sent_its_own_answers():
    made = talked(["one", "two"], system="be kind")
    assert made.messages(1) == [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "tuned: one"},
        {"role": "user", "content": "two"},
    ]
    answer = made.turns[1].answers[0]
    assert (answer.text, answer.tokens, answer.end) == ("base: two", 3, "turn")
    assert answer.seconds >= answer.first > 0


@given(st.lists(TEXTS, min_size=1, max_size=4), st.text(max_size=20))
def test_an_export_is_read_back_as_training_data(tmp_path_factory, questions, system):
    made = talked(questions, system=system)
    file = tmp_path_factory.mktemp("export") / "conversation.json"
    file.write_text(json.dumps(made.sharegpt()), encoding="utf-8")
    rows = [row for batch in read_file(file) for row in batch.rows]
    assert format_of(rows, RowFormat.auto, str(file)) is RowFormat.sharegpt
    read = [reader(RowFormat.sharegpt)(row) for row in rows]
    for side, turns in enumerate(read):
        said = [(message["role"], message["content"]) for message in made.messages(side)]
        assert turns == [*said, ("assistant", made.turns[-1].answers[side].text)]


@given(st.lists(TEXTS, max_size=3))
def test_what_the_browser_keeps_is_the_same_conversation(questions):
    made = talked(questions)
    assert Conversation.from_json(made.to_json(), made.models) == made


@pytest.mark.parametrize(
    "kept",
    [
        "",
        "[" * 100_000,
        "{",
        "[]",
        "null",
        '{"turns": []}',
        '{"models": ["a"], "system": "", "id": "x", "turns": [{}]}',
    ],
)
def test_broken_or_foreign_ones_are_left_out(kept):
    assert Conversation.from_json(kept, ["a"]) is None
    assert Session.read(json.dumps([kept]), ["a"], "").conversations == []
    assert Session.read(kept, ["a"], "").conversations == []


ANY = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=3),
    st.just([]),
    st.just({}),
    st.just(10**400),
)


@given(st.sampled_from(["turn", "answer", "whole"]), st.data())
def test_whatever_stands_in_an_entry_the_page_can_show_it_or_leaves_it_out(part, data):
    made = json.loads(talked(["one", "two"]).to_json())
    place = {"turn": made["turns"][0], "answer": made["turns"][0]["answers"][1], "whole": made}[part]
    field = data.draw(st.sampled_from([*place, "new"]))
    place[field] = data.draw(ANY)
    session = Session.read(json.dumps([json.dumps(made)]), ["base", "tuned"], "")
    for kept in session.conversations:
        session.open(kept.id)
        assert session.titles()
        if kept.turns:
            session.again(0, Settings()).seed.to_bytes(8, "big")
            assert all(isinstance(message["content"], str) for message in kept.messages(1))
        assert all(isinstance(answer.said(), str) for turn in kept.turns for answer in turn.answers)
        again = Conversation.from_json(kept.to_json(), kept.models)
        assert again is not None
        assert kept.sharegpt() or not kept.turns
    assert session.conversations or field not in ("tokens", "seconds", "first", "seed", "end", "new")


def test_another_pair_of_models_has_other_conversations():
    kept = json.dumps([talked(["one"]).to_json()])
    assert len(Session.read(kept, ["base", "tuned"], "").conversations) == 1
    assert Session.read(kept, ["other"], "").conversations == []


def test_half_an_answer_counts_as_stopped():
    made = talked(["one"])
    made.turns[0].answers[0] = Answer("half")
    read = Conversation.from_json(made.to_json(), made.models)
    assert read is not None
    assert read.turns[0].answers[0].end == "stopped"


def test_surrogates_do_no_harm():
    made = talked(["half \ud800 of a pair"])
    assert made.to_json().encode()
    assert "\ud800" not in made.turns[0].question


def test_again_and_edit_cut_what_came_after():
    session = Session(["base", "tuned"], [], talked(["one", "two", "three"]))
    settings = Settings(seed=7)
    assert session.again(1, settings).question == "two"
    assert [turn.question for turn in session.current.turns] == ["one", "two"]
    assert session.current.turns[1].seed == 1
    session.edit(0, "other", settings)
    assert [(turn.question, turn.seed) for turn in session.current.turns] == [("other", 7)]
    assert session.again(0, Settings(temperature=0, seed=7)).seed == 7


def conversation_of(lengths, system=""):
    messages = [{"role": "system", "content": system}] if system else []
    for number, length in enumerate(lengths):
        role = "user" if number % 2 == 0 else "assistant"
        messages.append({"role": role, "content": " ".join([f"{number}"] * length)})
    return messages


@given(st.integers(0, 6), st.data(), st.booleans())
def test_what_does_not_fit_goes_from_the_oldest_turn(turns, data, system):
    lengths = data.draw(st.lists(st.integers(1, 60), min_size=2 * turns + 1, max_size=2 * turns + 1))
    engine = Words(context=100)
    messages = conversation_of(lengths, "be kind" if system else "")
    fitted = fit(engine, messages, 40)
    assert engine.count(fitted.messages) <= 60
    kept = fitted.messages[system:]
    assert fitted.messages[:system] == messages[:system]
    assert len(kept) == len(messages) - system - 2 * fitted.dropped
    assert kept[:-1] == messages[len(messages) - len(kept) : -1]
    assert fitted.cut == (kept[-1] != messages[-1])
    if fitted.dropped and not fitted.cut:
        more = [*messages[:system], *messages[len(messages) - len(kept) - 2 :]]
        assert engine.count(more) > 60, "no turn is left out without need"
    assert bool(fitted.said()) == bool(fitted.dropped or fitted.cut)


def test_a_long_conversation_is_counted_a_few_times_only(monkeypatch):
    counted, engine = [], Words(context=200)
    count = engine.count
    monkeypatch.setattr(engine, "count", lambda messages: counted.append(1) or count(messages))
    fitted = fit(engine, conversation_of([5] * 301), 100)
    assert fitted.dropped == 143
    assert len(counted) <= 11


def test_a_megabyte_loses_its_middle():
    fitted = fit(Words(context=1000), [{"role": "user", "content": "first " + "x " * 500_000 + "last"}], 100)
    content = fitted.messages[0]["content"]
    assert fitted.cut
    assert content.startswith("first x")
    assert content.endswith("x last")
    assert content.count(GAP) >= 1
    assert "middle" in fitted.said()


def test_a_system_message_without_room_is_refused():
    with pytest.raises(UserError, match="system message leaves no room"):
        fit(Words(context=64), conversation_of([3], "word " * 100), 10)


def test_what_is_left_out_is_said_with_the_answer():
    made = Conversation(["one"])
    engine = Words(context=64)
    for _ in range(6):
        turn = made.ask("a question of a few words", 0)
        for step in answers({0: engine}, {0: made.messages(0)}, Settings(max_new_tokens=30), lambda: False):
            take(turn, step)
    assert "oldest" in turn.answers[0].said()
    assert turn.answers[0].end == str(End.turn)
