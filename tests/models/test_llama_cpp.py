"""Threads share a llama.cpp server: when it crashes or hangs, each of them gets the cause. A program stands for it."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tometune.models.llama_cpp import LlamaError, LlamaServer

SERVER = """
import os, socket, sys, threading
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
server = socket.create_server(("127.0.0.1", 0))
print("http://127.0.0.1:%d" % server.getsockname()[1], flush=True)
connections = []
while sys.argv[1] == "hangs" or len(connections) < 8:
    connections.append(server.accept())
print("0.01 E srv    the cause", file=sys.stderr, flush=True)
print("another line", file=sys.stderr, flush=True)
os._exit(3)
"""


@pytest.mark.parametrize(
    ("fault", "seconds", "reason"), [("crashes", None, "status 3: the cause"), ("hangs", 0.3, "no answer within 0.3 s")]
)
def test_every_thread_gets_the_cause(monkeypatch, fault, seconds, reason):
    start = subprocess.Popen
    monkeypatch.setattr(
        "tometune.models.llama_cpp.subprocess.Popen",
        lambda _, **options: start([sys.executable, "-c", SERVER, fault], **options),
    )

    def ask(_: int) -> str:
        with pytest.raises(LlamaError) as raised:
            server.request("POST", "/completion", {})
        return str(raised.value)

    with LlamaServer(Path("model.gguf"), 256, 8, seconds) as server, ThreadPoolExecutor(8) as pool:
        found = set(pool.map(ask, range(16)))
    assert found == {f"llama.cpp has ended ({reason}); run the command again"}
    assert server.process.returncode is not None, "the process is reaped"
