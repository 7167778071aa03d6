"""`chat` as a user runs it: the page with a run and its base, the terminal through a pipe, and rejected commands."""

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.browser import needs_browser, opened
from tests.chatting.conftest import write_run
from tests.chatting.test_page import answers, ask
from tests.conftest import Run
from tests.whole import assert_one_line

pytest.importorskip("gradio")

RUN = "tiny-pydocs_1k-s0-abcdef00"


@needs_browser
@pytest.mark.whole
def test_a_run_next_to_its_base(tmp_path, base, store, clean_env):
    write_run(tmp_path / "outputs" / RUN, base)
    command = [sys.executable, "-m", "tometune.chat", f"run={RUN}", "against=base", f"paths.cache={store}"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = subprocess.Popen([*command, "chat.max_new_tokens=40"], cwd=tmp_path, env=clean_env, **pipes)
    try:
        with opened(re.search(r"http://127\.0\.0\.1:\d+/", started.stdout.readline())[0]) as seen:
            seen.page.wait_for_selector("#box textarea:enabled")
            seen.page.get_by_text(RUN).first.wait_for()
            ask(seen.page, "What does this function do?")
            seen.page.wait_for_selector("#box .stop-button")
            seen.page.wait_for_selector("#box .submit-button", timeout=200_000)
            before, after = answers(seen.page)
            assert before != after
            assert "…" not in (before, after)
            assert not any(token in before + after for token in ("<|im_start|>", "<|im_end|>", "<|endoftext|>"))
        started.send_signal(signal.SIGINT)
        _, stderr = started.communicate(timeout=20)
        assert started.returncode == 0, stderr
        assert stderr.splitlines() == ["loading tiny (base)", f"loading {RUN}", "ended"]
    finally:
        started.kill()
        started.communicate()


@pytest.mark.whole
def test_the_terminal_through_a_pipe(tmp_path, base, store, clean_env):
    write_run(tmp_path / "outputs" / RUN, base)
    command = [sys.executable, "-m", "tometune.chat", f"run={RUN}", "ui=terminal", f"paths.cache={store}"]
    lines = "/tokens 9\nWhat is it?\n/save saved.json\n"
    done = subprocess.run(command, cwd=tmp_path, env=clean_env, input=lines, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, f"loading {RUN}\n")
    assert "tokens/s" in done.stdout
    (row,) = json.loads((tmp_path / "saved.json").read_text())
    assert row["model"] == RUN
    assert row["conversations"][0] == {"from": "human", "value": "What is it?"}


def test_a_port_that_is_taken(run_verb: Run, store: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run_verb("chat", "model=tiny", f"chat.port={port}", f"paths.cache={store}")
    assert done.returncode == 2
    assert_one_line(done, rf"^chat\.port={port}: .*; choose another port, or null$")


LOAD = """
import sys
from pathlib import Path
from tometune.chatting.targets import _model, load_engines
from tometune.config.model import ModelConfig, Quantization
for name in sys.argv[1:]:
    try:
        target = _model(ModelConfig(name="it", id=name, quantization=Quantization.none))
        (engine,) = load_engines([target], Path("cache"), 256)
        print(f"loaded {engine.adapter}")
    except Exception as error:
        print(error)
"""


@pytest.mark.whole
@pytest.mark.nightly
def test_models_and_adapters_on_the_hub(run_python, hub, base, tmp_path):
    shutil.copytree(base, hub.add_model("some/model").folder, dirs_exist_ok=True)
    for name in ("adapter", "pickled"):
        adapter = write_run(tmp_path / name, base) / "adapter"
        config = json.loads((adapter / "adapter_config.json").read_text()) | {"base_model_name_or_path": "some/model"}
        (adapter / "adapter_config.json").write_text(json.dumps(config))
        if name == "pickled":
            (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
        shutil.copytree(adapter, hub.add_model(f"some/{name}").folder, dirs_exist_ok=True)
    names = ["some/missing", "some/model", "some/adapter", "some/pickled"]
    done = run_python("-c", LOAD, *names, env=hub.env(tmp_path / "hf"), timeout=120)
    assert done.returncode == 0, done.stderr
    missing, model, adapter, pickled = done.stdout.splitlines()[-4:]
    assert missing.startswith("model.id=some/missing: no such repository on the hub")
    assert (model, adapter) == ("loaded None", "loaded target0")
    assert pickled.startswith("model.id=some/pickled: ")
