"""Measure what docs/chat.md states: command to page, command to a loaded model, first token, tokens/s.

Nothing is asserted. Arguments are those of `chat`, e.g. `bench_chat.py run=outputs/<run_id> against=base`. "By CPU
time" is what the same would be if nothing else ran on the cores; where several threads share busy cores it is too high,
for they wait for each other by spinning, so set OMP_NUM_THREADS=1 there.
"""

import os
import platform
import re
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import httpx

from tometune.runs.provenance import git_state, versions

PROMPTS = [
    f"{number}. Explain in a few sentences what the Python function os.path.join does." for number in range(1, 6)
]
"""Different from the first character on, so that none reuses what was read for another."""

TOKENS = 48


def main() -> None:
    """Measure, and print what came of it."""
    arguments = sys.argv[1:] or ["model=smollm2_135m"]
    if arguments[0] == "--engines":
        sys.argv = ["chat", *arguments[1:]]
        engines()
        return
    threads = os.environ.get("OMP_NUM_THREADS", "not set")
    print(
        f"commit {git_state()['commit'][:8]}, {platform.machine()}, {os.cpu_count()} cores, OMP_NUM_THREADS {threads}"
    )
    print({name: version for name, version in versions().items() if name in ("python", "torch", "transformers")})
    for name in ("command to page", "command to loaded"):
        print(f"{name:18}", *(f"{wall:.2f} s ({cpu:.2f} s by CPU time)" for wall, cpu in starts(name, arguments)))
    subprocess.run([sys.executable, __file__, "--engines", *arguments], check=True)


def starts(what: str, arguments: list[str]) -> Iterator[tuple[float, float]]:
    """Start the command three times; yield the seconds until the page answers, or until the model is there."""
    for _ in range(3):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        start = time.perf_counter()
        command = [sys.executable, "-m", "tometune.chat", *arguments, f"chat.port={port}", "chat.inbrowser=false"]
        started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            if what == "command to page":
                while not answers(f"http://127.0.0.1:{port}/"):
                    if started.poll() is not None:
                        sys.exit(started.communicate()[1])
                    time.sleep(0.01)
            else:
                assert started.stderr is not None
                while not re.match("ready", line := line_of(started)) and line:
                    pass
            yield time.perf_counter() - start, cpu_of(started.pid)
        finally:
            started.kill()
            started.communicate()


def line_of(started: "subprocess.Popen[str]") -> str:
    """Return the next line of the log; empty where none came within two minutes."""
    return started.stderr.readline() if started.stderr and select.select([started.stderr], [], [], 120)[0] else ""


def answers(url: str) -> bool:
    """Tell whether the page is there."""
    try:
        return httpx.get(url, timeout=10).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


def cpu_of(pid: int) -> float:
    """Return the CPU seconds of a process so far (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def engines() -> None:
    """Ask each model the same prompts, alone."""
    from tometune.chatting.engine import Settings
    from tometune.chatting.load import load_engines
    from tometune.chatting.sides import find_sides
    from tometune.config.app import verb
    from tometune.config.root import Config
    from tometune.runs.inputs import cache_folder

    def measure(config: Config) -> None:
        """Print the medians."""
        sides = find_sides(config)
        settings = Settings(config.chat.temperature, config.chat.top_p, TOKENS)
        loaded = load_engines(sides, cache_folder(config), config.chat.context, lambda _: None)
        for side, engine in zip(sides, loaded, strict=True):
            first, rest = [], []
            for prompt in PROMPTS:
                pieces = engine.stream([{"role": "user", "content": prompt}], settings, lambda: False)
                begun = time.perf_counter(), time.process_time()
                next(pieces)
                one = time.perf_counter(), time.process_time()
                tokens = list(pieces)[-1].tokens - 1
                end = time.perf_counter(), time.process_time()
                first.append([after - before for before, after in zip(begun, one, strict=True)])
                rest.append([tokens / (after - before) for before, after in zip(one, end, strict=True)])
            (wall, cpu), (fast, by_cpu) = (map(median, zip(*each, strict=True)) for each in (first, rest))
            print(f"{side.label}: first token {wall:.2f} s ({cpu:.2f} s by CPU time), ", end="")
            print(f"then {fast:.1f} tokens/s ({by_cpu:.1f} by CPU time)", flush=True)

    verb(measure)()


if __name__ == "__main__":
    main()
