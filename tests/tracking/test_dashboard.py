"""trackio's dashboard in a real browser, started with the command that a run prints."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser import needs_browser, opened
from tests.tracking.conftest import CHECKOUT
from tests.whole import environment

pytest.importorskip("trackio")
pytestmark = [pytest.mark.nightly, needs_browser]

SEED = re.compile(r"tiny-pydocs_1k-s(\d)-abcdef0\d")

TRACK = """
import sys
from pathlib import Path
from tometune.config.tracking import Tracker, TrackingConfig
from tometune.tracking import RunLabels, start_tracker
for seed in range(2):
    folder = Path(f"multirun/pair/tiny-pydocs_1k-s{seed}-abcdef0{seed}")
    config = TrackingConfig(tracker=Tracker.trackio)
    with start_tracker(config, RunLabels(folder.name, "train", "pair", folder, {})) as tracker:
        for step in range(1, 21):
            tracker.log({"train/loss": 2 / step + 0.1 * seed, "train/learning_rate": 1e-4}, step=step)
        tracker.summary({"eval/tuned/rouge1": 0.3 + 0.1 * seed})
        tracker.table("predictions/qa", ["id", "prediction"], [["qa-1", f"the answer of seed {seed}"]])
print(tracker.describe()["show"])
"""


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A home of its own, no browser to open, a port that is free."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    return {
        **environment(tmp_path_factory.mktemp("home")),
        "PYTHONPATH": str(CHECKOUT),
        "BROWSER": "true",
        "GRADIO_SERVER_PORT": str(port),
        "PYTHONUNBUFFERED": "1",
    }


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory, env: dict[str, str]) -> Iterator[str]:
    """Two tracked runs, and the address that the printed command serves them at."""
    folder = tmp_path_factory.mktemp("place")
    tracked = subprocess.run([sys.executable, "-c", TRACK], cwd=folder, env=env, capture_output=True, text=True)
    assert tracked.returncode == 0, tracked.stderr
    log = folder / "show.log"
    with log.open("w") as out:
        server = subprocess.Popen(tracked.stdout, shell=True, env=env, stdout=out, stderr=out, start_new_session=True)
    try:
        yield address(log, server)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(20)


def address(log: Path, server: subprocess.Popen) -> str:
    """Wait until the command says where it serves."""
    for _ in range(300):
        found = re.search(r"launched at: (http://\S+?)(?:\x1b|\s)", log.read_text())
        if found:
            return found[1]
        assert server.poll() is None, log.read_text()
        time.sleep(0.1)
    raise AssertionError(log.read_text())


def test_both_runs_and_their_curves_are_shown(shown):
    with opened(shown) as seen:
        page = seen.page
        page.get_by_text("tiny-pydocs_1k-s0-abcdef00").first.wait_for(timeout=30_000)
        page.get_by_text("tiny-pydocs_1k-s1-abcdef01").first.wait_for()
        page.get_by_text("loss", exact=True).first.wait_for()
        text = page.locator("body").inner_text()
        assert set(SEED.findall(text)) == {"0", "1"}
        assert {"train (2)", "eval (1)"} <= {line.strip("▼ ") for line in text.splitlines()}
        title = page.get_by_text("loss", exact=True).last
        title.scroll_into_view_if_needed()  # a chart is drawn when it comes into view
        title.locator("xpath=ancestor::*[.//canvas][1]").locator("canvas.marks").first.wait_for()
    assert [error for error in seen.errors if "favicon" not in error] == []
    assert [url for url in seen.requests if not re.match(r"(http://127\.0\.0\.1:\d+/|data:|blob:)", url)] == []


def test_it_listens_on_localhost_alone(shown):
    assert shown.startswith("http://127.0.0.1:")
    port = int(re.search(r":(\d+)/", shown)[1])
    listening = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    here = {line[1] for line in listening if line[3] == "0A" and line[1].endswith(f":{port:04X}")}
    assert here == {f"0100007F:{port:04X}"}
