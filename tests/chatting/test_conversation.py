"""Conversations: what a model is sent, truncation to the context, storage, and that an export is training data."""

import json
import re

from hypothesis import given
from hypothesis import strategies as st

from tests.chatting.conftest import Words
from tometune.chatting.conversation import GAP, Answer, Conversation, Settings, truncate_to_context
from tometune.config.data import SourceConfig
from tometune.data.formats import Reader
from tometune.data.local_files import read_file

TEXTS = st.text(min_size=1, max_size=30).filter(lambda text: text.strip())


def conversation(prompts, system=""):
    """A conversation in which each of two models echoed each prompt."""
    made = Conversation(["base", "tuned"], system)
    for prompt in prompts:
        turn = made.ask(prompt, 0)
        for side, model in enumerate(made.models):
            list(turn.answers[side].generate(Words(f"{model}: "), made.messages(side), Settings()))
    return made


def test_each_model_is_sent_its_own_answers():
    made = conversation(["one", "half \ud800 of a pair"], system="be kind")
    assert made.messages(1) == [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "tuned: one"},
        {"role": "user", "content": "half \ufffd of a pair"},
    ]
    answer = made.turns[0].answers[0]
    assert (answer.text, answer.tokens, answer.end) == ("base: one", 3, "turn")
    assert answer.seconds >= answer.first > 0


@given(st.lists(TEXTS, min_size=1, max_size=4), st.text(max_size=20))
def test_an_export_is_read_back_as_training_data(tmp_path_factory, prompts, system):
    made = conversation(prompts, system=system)
    file = tmp_path_factory.mktemp("export") / "conversation.json"
    file.write_text(json.dumps(made.sharegpt()), encoding="utf-8")
    rows = [row for batch in read_file(file) for row in batch.rows]
    read = [Reader(SourceConfig(), "data.base").read(row) for row in rows]
    for side, found in enumerate(read):
        sent = [(message["role"], message["content"], None) for message in made.messages(side)]
        assert found.turns == [*sent, ("assistant", made.turns[-1].answers[side].text, None)]


def test_retry_and_edit_drop_later_turns():
    made = conversation(["one", "two", "three"])
    settings = Settings(seed=7)
    assert made.retry(1, settings).prompt == "two"
    assert [(turn.prompt, turn.seed) for turn in made.turns] == [("one", 0), ("two", 1)]
    made.edit(0, "other", settings)
    assert [(turn.prompt, turn.seed) for turn in made.turns] == [("other", 7)]
    assert made.retry(0, Settings(temperature=0)).seed == 7, "a greedy answer is the same with any seed"


@given(st.integers(0, 6), st.data(), st.booleans())
def test_the_oldest_turns_are_dropped_first(turns, data, system):
    lengths = data.draw(st.lists(st.integers(1, 60), min_size=2 * turns + 1, max_size=2 * turns + 1))
    engine = Words(context=100)
    messages = [{"role": "system", "content": "be kind"}] if system else []
    for number, length in enumerate(lengths):
        messages.append({"role": ("user", "assistant")[number % 2], "content": f"{number} " * length})
    fitted, note = truncate_to_context(engine, messages, 40)
    assert engine.count(fitted) <= 60
    kept = fitted[system:]
    assert fitted[:system] == messages[:system]
    first = len(messages) - len(kept)
    assert (first - system) % 2 == 0
    assert kept[:-1] == messages[first:-1]
    dropped, shortened = first > system, kept[-1] != messages[-1]
    if dropped and not shortened:
        assert engine.count([*messages[:system], *messages[first - 2 :]]) > 60, "no turn is dropped without need"
    assert ("oldest" in note, "middle" in note) == (dropped, shortened)


def test_a_long_prompt_loses_its_middle_and_a_long_system_message_is_reported():
    prompt = {"role": "user", "content": f"first {'x ' * 500_000}last"}
    ((fitted,), _) = truncate_to_context(Words(context=1000), [prompt], 100)
    assert re.fullmatch(rf"first x .*{GAP}.* x last", fitted["content"])
    answer = Answer()
    system = {"role": "system", "content": "word " * 100}
    list(answer.generate(Words(context=64), [system, prompt], Settings(max_new_tokens=10)))
    assert answer.summary().startswith("the system message leaves no room")
