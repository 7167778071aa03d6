"""Measure what docs/chat.md reports: seconds to the page and to the first token, and tokens/s.

The arguments are those of `chat`, e.g. `bench_chat.py run=outputs/<run_id> against=base`. CPU time shows how
long it would take on free cores. On busy cores set OMP_NUM_THREADS=1, because threads that wait for each other spin,
which counts as CPU time.
"""

import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import httpx

from tometune.runs.run import git_state, versions

PROMPTS = [
    f"{number}. Explain in a few sentences what the Python function os.path.join does." for number in range(1, 6)
]
"""Different from the first character on, so that no keys and values are reused."""

TOKENS = 48


def main() -> None:
    """Measure and print."""
    arguments = sys.argv[1:] or ["model=smollm2_135m"]
    if arguments[0] == "--engines":
        sys.argv = ["chat", *arguments[1:]]
        measure_engines()
        return
    threads = os.environ.get("OMP_NUM_THREADS", "not set")
    commit = git_state()["commit"][:8]
    print(f"commit {commit}, {platform.machine()}, {os.cpu_count()} cores, OMP_NUM_THREADS {threads}")
    print({name: version for name, version in versions().items() if name in ("python", "torch", "transformers")})
    print("command to page:", *(f"{wall:.2f} s ({cpu:.2f} s of CPU)" for wall, cpu in start_up(arguments)))
    subprocess.run([sys.executable, __file__, "--engines", *arguments], check=True)


def start_up(arguments: list[str]) -> Iterator[tuple[float, float]]:
    """Start the command three times; yield the seconds and the CPU seconds until the page answers."""
    for _ in range(3):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "tometune.chat", *arguments, f"chat.port={port}"]
        start = time.perf_counter()
        started = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            while not responds(f"http://127.0.0.1:{port}/"):
                if started.poll() is not None:
                    sys.exit(started.communicate()[1])
                time.sleep(0.01)
            fields = Path(f"/proc/{started.pid}/stat").read_text().rpartition(")")[2].split()
            cpu = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
            yield time.perf_counter() - start, cpu
        finally:
            started.kill()
            started.communicate()


def responds(url: str) -> bool:
    """Return whether the page is there."""
    try:
        return httpx.get(url, timeout=10).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


def measure_engines() -> None:
    """Send each model the same prompts, one model after the other, and print medians."""
    from tometune.chatting.conversation import Settings
    from tometune.chatting.targets import find_targets, load_engines
    from tometune.config.app import verb
    from tometune.config.root import Config
    from tometune.runs.inputs import cache_folder

    def measure(config: Config) -> None:
        targets = find_targets(config)
        settings = Settings(config.chat.temperature, config.chat.top_p, TOKENS)
        engines = load_engines(targets, cache_folder(config), config.chat.context)
        for target, engine in zip(targets, engines, strict=True):
            first, rest = [], []
            for prompt in PROMPTS:
                times = [(time.perf_counter(), time.process_time())]
                tokens = 0
                for piece in engine.stream([{"role": "user", "content": prompt}], settings):
                    if piece.tokens > tokens:
                        times.append((time.perf_counter(), time.process_time()))
                        tokens = piece.tokens
                (wall, cpu), (wall1, cpu1), (wall2, cpu2) = times[0], times[1], times[-1]
                first.append((wall1 - wall, cpu1 - cpu))
                rest.append([(tokens - 1) / max(spent, 1e-9) for spent in (wall2 - wall1, cpu2 - cpu1)])
            (wall, cpu), (fast, by_cpu) = (map(median, zip(*each, strict=True)) for each in (first, rest))
            print(f"{target.label}: first token {wall:.2f} s ({cpu:.2f} s of CPU), ", end="")
            print(f"then {fast:.1f} tokens/s ({by_cpu:.1f} per CPU second)", flush=True)

    verb(measure)()


if __name__ == "__main__":
    main()
