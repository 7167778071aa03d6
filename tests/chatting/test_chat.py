"""`chat` as a user runs it: the page with a run and its base, the terminal through a pipe, and models of the hub."""

import json
import re
import shutil
import signal
import socket
import subprocess
import sys

import pytest

from tests.browser import needs_browser, opened
from tests.chatting.conftest import write_run
from tests.chatting.test_page import answers, ask, finished, until
from tests.whole import assert_one_line

pytest.importorskip("gradio")

RUN = "tiny-pydocs_1k-s0-abcdef00"


@pytest.fixture
def chat(tmp_path, base, store, clean_env):
    """Return a function that starts `chat` with a run in outputs/."""
    write_run(tmp_path / "outputs" / RUN, base)
    command = [sys.executable, "-m", "tometune.chat", f"run={RUN}", f"paths.cache={store}"]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return lambda *more: subprocess.Popen([*command, *more], cwd=tmp_path, env=clean_env, text=True, **pipes)


@needs_browser
@pytest.mark.whole
def test_a_run_next_to_its_base(chat):
    started = chat("against=base", "chat.max_new_tokens=40")
    try:
        with opened(re.search(r"http://127\.0\.0\.1:\d+/", started.stdout.readline())[0]) as seen:
            seen.page.wait_for_selector("#box textarea:enabled")
            seen.page.get_by_text("Tuned: tiny on mix_100k, seed 0").first.wait_for()
            assert seen.page.get_by_text(RUN).count() == 0
            ask(seen.page, "What does this function do?")
            until(lambda: len(answers(seen.page)) == 2 and "…" not in answers(seen.page), seconds=200)
            finished(seen.page)
            before, after = answers(seen.page)
            assert before != after
            assert not any(token in before + after for token in ("<|im_start|>", "<|im_end|>", "<|endoftext|>"))
        started.send_signal(signal.SIGINT)
        _, stderr = started.communicate(timeout=20)
        assert started.returncode == 0, stderr
        assert stderr.splitlines() == ["loading tiny (base)", f"loading {RUN}", "ended"]
    finally:
        started.kill()
        started.communicate()


@pytest.mark.whole
def test_the_terminal_through_a_pipe(chat, tmp_path):
    started = chat("ui=terminal")
    out, stderr = started.communicate("/tokens 9\nWhat is it?\n/save saved.json\n")
    assert (started.returncode, stderr) == (0, f"loading {RUN}\n")
    assert "tokens/s" in out
    (row,) = json.loads((tmp_path / "saved.json").read_text())
    assert row["model"] == RUN
    assert row["conversations"][0] == {"from": "human", "value": "What is it?"}


@pytest.mark.nightly
def test_a_port_that_is_taken(run_verb, store):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run_verb("chat", "model=tiny", f"chat.port={port}", f"paths.cache={store}")
    assert done.returncode == 2
    assert_one_line(done, rf"^chat\.port={port}: .*; choose another port, or null$")


@pytest.mark.whole
@pytest.mark.nightly
def test_models_and_adapters_on_the_hub(run_verb, hub, base, tmp_path):
    shutil.copytree(base, hub.add_model("some/model").folder, dirs_exist_ok=True)
    adapter = write_run(tmp_path / "run", base) / "adapter"
    config = json.loads((adapter / "adapter_config.json").read_text()) | {"base_model_name_or_path": "some/model"}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    for name in ("adapter", "pickled"):
        shutil.copytree(adapter, hub.add_model(f"some/{name}").folder, dirs_exist_ok=True)
    weights = hub.root / "models" / "some" / "pickled" / "adapter_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    for name, ends in (
        ("model", "loading it"),
        ("adapter", "loading some/adapter"),
        ("missing", "model.id=some/missing: no such repository on the hub"),
        ("pickled", "/"),
    ):
        command = (f"model.id=some/{name}", "model.name=it", "model.quantization=none", "ui=terminal")
        done = run_verb("chat", *command, env=hub.env(tmp_path / "hf"))
        assert done.stderr.splitlines()[-1].startswith(ends)
        assert name != "pickled" or "adapter_model.bin is a pickle and is not read" in done.stderr
        assert done.returncode == (0 if ends.startswith("loading") else 2)
