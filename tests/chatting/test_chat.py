"""`chat` as a user runs it: the page with a run and its base, the terminal through a pipe, and rejected commands."""

import json
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.browser import needs_browser, opened
from tests.chatting.conftest import write_run
from tests.chatting.test_page import answers, ask, finished
from tests.conftest import Run
from tests.hub import Hub
from tests.whole import assert_one_line

pytest.importorskip("gradio")

RUN = "tiny-pydocs_1k-s0-abcdef00"


@pytest.fixture
def page(tmp_path: Path, base: Path, store: Path, clean_env: dict[str, str]) -> Iterator[tuple[Any, str]]:
    """The command with a run and its base, and the address that it prints."""
    write_run(tmp_path / "outputs" / RUN, base)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tometune.chat", f"run={RUN}", "against=base", f"chat.port={port}"]
    command += [f"paths.cache={store}", "chat.max_new_tokens=40"]
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    started = subprocess.Popen(command, cwd=tmp_path, env=clean_env, text=True, **pipes)
    assert started.stdout is not None
    line = started.stdout.readline() if select.select([started.stdout], [], [], 400)[0] else ""
    try:
        yield started, re.findall(r"http://127\.0\.0\.1:\d+/", line)[0]
    finally:
        started.kill()
        started.communicate()


@needs_browser
@pytest.mark.whole
def test_a_run_next_to_its_base(page):
    started, address = page
    with opened(address) as seen:
        seen.page.wait_for_selector("#box textarea:enabled", timeout=60_000)
        seen.page.get_by_text(RUN).first.wait_for()
        ask(seen.page, "What does this function do?")
        seen.page.wait_for_selector("#box .stop-button")
        finished(seen.page)
        before, after = answers(seen.page)
        assert before != after
        assert "…" not in (before, after)
        assert not any(token in before + after for token in ("<|im_start|>", "<|im_end|>", "<|endoftext|>"))
    started.send_signal(signal.SIGINT)
    _, stderr = started.communicate(timeout=20)
    assert started.returncode == 0, stderr
    assert stderr.splitlines() == ["loading tiny (base)", f"loading {RUN}", "ended"]


@pytest.mark.whole
def test_the_terminal_through_a_pipe(tmp_path, base, store, clean_env):
    write_run(tmp_path / "outputs" / RUN, base)
    command = [sys.executable, "-m", "tometune.chat", f"run={RUN}", "ui=terminal", f"paths.cache={store}"]
    lines = "/tokens 9\nWhat is it?\n/save saved.json\n"
    done = subprocess.run(command, cwd=tmp_path, env=clean_env, input=lines, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "tokens/s" in done.stdout
    (row,) = json.loads((tmp_path / "saved.json").read_text())
    assert row["model"] == RUN
    assert row["conversations"][0] == {"from": "human", "value": "What is it?"}
    assert done.stderr == f"loading {RUN}\n"


def test_a_port_that_is_taken(run_verb: Run, store: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run_verb("chat", "model=tiny", f"chat.port={port}", f"paths.cache={store}")
    assert done.returncode == 2
    assert_one_line(done, rf"^chat\.port={port}: .*; choose another port, or null$")


LOAD = """
import json, sys
from pathlib import Path
from tometune.chatting.targets import _model, load_engines
from tometune.common.errors import UserError
from tometune.config.model import ModelConfig, Quantization
messages = []
for name in sys.argv[1:]:
    try:
        target, _ = _model(ModelConfig(name="it", id=name, quantization=Quantization.none))
        (engine,) = load_engines([target], Path("cache"), 256)
        messages.append(f"loaded {engine.adapter}")
    except UserError as error:
        messages.append(str(error))
print(json.dumps(messages))
"""


@pytest.mark.whole
@pytest.mark.nightly
def test_models_and_adapters_on_the_hub(run_python: Run, hub: Hub, base: Path, tmp_path: Path):
    hub.gated.add("some/gated")
    for name in ("some/gated", "some/pickled", "some/good"):
        shutil.copytree(base, hub.add_model(name).folder, dirs_exist_ok=True)
    pickled = hub.add_model("some/pickled").folder
    (pickled / "model.safetensors").unlink()
    torch.save({}, pickled / "pytorch_model.bin")
    adapters = [write_run(tmp_path / name, base) / "adapter" for name in ("safe", "unsafe")]
    torch.save({}, adapters[1] / "adapter_model.bin")
    (adapters[1] / "adapter_model.safetensors").unlink()
    for name, adapter in zip(("some/adapter", "some/unsafe"), adapters, strict=True):
        config = json.loads((adapter / "adapter_config.json").read_text()) | {"base_model_name_or_path": "some/good"}
        (adapter / "adapter_config.json").write_text(json.dumps(config))
        shutil.copytree(adapter, hub.add_model(name).folder, dirs_exist_ok=True)
    names = ["some/missing", "some/gated", "some/pickled", "some/good", "some/adapter", "some/unsafe"]
    done = run_python("-c", LOAD, *names, env=hub.env(tmp_path / "hf"), timeout=120)
    assert done.returncode == 0, done.stderr
    missing, gated, pickles, good, tuned, unsafe = json.loads(done.stdout.splitlines()[-1])
    assert missing.startswith("model.id=some/missing: no such repository on the hub")
    assert gated.startswith("model.id=some/gated: is gated; accept its terms")
    assert pickles.startswith("model.id=some/pickled: holds no safetensors weights")
    assert (good, tuned) == ("loaded None", "loaded target0")
    assert unsafe.startswith("model.id=some/unsafe: ")
