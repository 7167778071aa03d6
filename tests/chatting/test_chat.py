"""`chat` as a user runs it: the page over a run and its base, the terminal through a pipe, and what is refused."""

import json
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.browser import needs_browser
from tests.chatting.conftest import write_run
from tests.chatting.test_browser import answers, ask, said, tab, until
from tests.conftest import Run
from tests.hub import Hub
from tests.whole import assert_one_line

pytest.importorskip("gradio")

RUN = "tiny-pydocs_1k-s0-abcdef00"


@pytest.fixture
def page(tmp_path: Path, base: Path, store: Path, clean_env: dict[str, str]) -> Iterator[tuple[Any, str]]:
    """The command over a run and its base, and the address that it prints."""
    write_run(tmp_path / "outputs" / RUN, base)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tometune.chat", f"run={RUN}", "against=base", f"chat.port={port}"]
    overrides = [f"paths.cache={store}", "chat.max_new_tokens=40"]
    started = subprocess.Popen(
        [*command, *overrides],
        cwd=tmp_path,
        env=clean_env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert started.stdout is not None
    line = started.stdout.readline() if select.select([started.stdout], [], [], 60)[0] else ""
    try:
        yield started, re.findall(r"http://127\.0\.0\.1:\d+/", line)[0]
    finally:
        started.kill()
        started.communicate()


@needs_browser
@pytest.mark.whole
def test_a_run_beside_its_base(page):
    started, address = page
    with tab(address) as seen:
        seen.page.get_by_role("heading", name=RUN).wait_for()
        ask(seen.page, "What does this function do?")
        said(seen.page, "tokens/s", nth=1)
        until(lambda: seen.page.query_selector("#box .submit-button"))
        before, after = answers(seen.page)
        assert before != after
        assert before not in ("", "…")
        assert not any(token in before + after for token in ("<|im_start|>", "<|im_end|>", "<|endoftext|>"))
    started.send_signal(signal.SIGINT)
    _, stderr = started.communicate(timeout=20)
    assert started.returncode == 0, stderr
    assert [re.sub(r"[\d.]+", "1", line) for line in stderr.splitlines()] == ["ready after 1 s", "ended"]


@pytest.mark.whole
def test_the_terminal_through_a_pipe(tmp_path, base, store, clean_env):
    write_run(tmp_path / "outputs" / RUN, base)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tometune.chat",
            f"run={RUN}",
            "ui=terminal",
            f"paths.cache={store}",
            "chat.temperature=0",
        ],
        cwd=tmp_path,
        env=clean_env,
        input="/tokens 9\nWhat is it?\n/save saved.json\n",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "tokens/s" in done.stdout
    (row,) = json.loads((tmp_path / "saved.json").read_text())
    assert row["model"] == RUN
    assert row["conversations"][0] == {"from": "human", "value": "What is it?"}
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("verb", "overrides", "says"),
    [
        ("chat", ["run=none"], r"^run=none: no such folder, nor a run of that id; name a run folder"),
        ("chat", ["model=tiny", "lora.r=8"], r"^lora\.r=8: only train and prepare read it"),
        ("chat", ["model=tiny", "chat.top_p=0"], r"^chat\.top_p=0\.0: not above 0"),
        ("train", ["share=true"], r"^share=true: only chat reads it"),
    ],
)
def test_what_cannot_be_is_one_line_and_quick(run_verb: Run, verb, overrides, says):
    start = time.monotonic()
    done = run_verb(verb, *overrides)
    assert done.returncode == 2
    assert_one_line(done, says)
    assert time.monotonic() - start < 10


def test_a_port_that_is_taken(run_verb: Run, store: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run_verb("chat", "model=tiny", f"chat.port={port}", f"paths.cache={store}")
    assert done.returncode == 2
    assert_one_line(done, rf"^chat\.port={port}: .*; take another, or null$")


LOAD = """
import json, sys
from pathlib import Path
from tometune.chatting.load import load_engines
from tometune.chatting.published import published_adapter
from tometune.chatting.sides import Side
from tometune.common.errors import UserError
from tometune.config.model import ModelConfig, Quantization
said = []
for name in sys.argv[1:]:
    model = ModelConfig(name="it", id=name, quantization=Quantization.none)
    try:
        base, adapter = published_adapter(model) or (model, None)
        side = Side("it", base, adapter, published=model if adapter else None)
        (engine,) = load_engines([side], Path("cache"), 256, lambda stage: None)
        said.append(f"loaded {engine.adapter}")
    except UserError as error:
        said.append(str(error))
print(json.dumps(said))
"""


@pytest.mark.whole
def test_models_on_the_hub_that_cannot_be_had(run_python: Run, hub: Hub, base: Path, tmp_path: Path):
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
        said = json.loads((adapter / "adapter_config.json").read_text()) | {"base_model_name_or_path": "some/good"}
        (adapter / "adapter_config.json").write_text(json.dumps(said))
        shutil.copytree(adapter, hub.add_model(name).folder, dirs_exist_ok=True)
    names = ["some/missing", "some/gated", "some/pickled", "some/good", "some/adapter", "some/unsafe"]
    done = run_python("-c", LOAD, *names, env=hub.env(tmp_path / "hf"), timeout=120)
    assert done.returncode == 0, done.stderr
    missing, gated, pickles, good, tuned, unsafe = json.loads(done.stdout.splitlines()[-1])
    assert missing.startswith("model.id=some/missing: no such repository on the hub")
    assert gated.startswith("model.id=some/gated: is gated; accept its terms")
    assert pickles.startswith("model.id=some/pickled: holds no safetensors weights, and others (pickles) can run code")
    assert (good, tuned) == ("loaded None", "loaded side0")
    assert unsafe.startswith("model.id=some/unsafe: ")
