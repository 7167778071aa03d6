"""Fixtures shared by all rooms: a clean environment, a hub on localhost, verbs in processes of their own."""

import gc
import multiprocessing
import os
import shutil
import signal
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tests.fork_server import remember_yaml
from tests.hub import Hub
from tests.whole import Done, Workplace, environment
from tests.whole import run_python as run_in

for _number, _usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_number) is signal.SIG_IGN:  # in the background or under nohup; processes of tests inherit it
        signal.signal(_number, _usual)

# Before torch is imported. With several threads per worker, small products are slow on cores that are busy, because
# threads of OpenMP keep a core busy while they wait for each other. On free cores one thread is as fast.
os.environ.setdefault("OMP_NUM_THREADS", "1")
gc.disable()  # until the tests are collected: collections during imports are slow and free nothing
remember_yaml()

Run = Callable[..., Done]
TESTS = Path(__file__).parent


@pytest.hookimpl(trylast=True)  # after those that deselect items
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Deal the files that hold whole runs to the workers, each of which begins with theirs.

    xdist gives each worker an equal part of the list, and what is left of another's part when it is idle. So no core is
    idle at the end while another has a whole run left, and few modules make what their tests share twice. Those of a
    room stay together, because one worker would wait while another makes a fixture of the session.
    """
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    files = defaultdict(list)
    for item in items:
        files[item.path].append(item)
    runs = {path: sum(item.get_closest_marker("whole") is not None for item in files[path]) for path in files}
    rooms = defaultdict(list)
    for path in filter(runs.get, files):
        rooms[path if path.parent == TESTS else path.parent].append(path)
    parts: list[list[pytest.Item]] = [[] for _ in range(workers)]
    for paths in sorted(rooms.values(), key=lambda paths: -sum(runs[path] for path in paths)):
        min(parts, key=len).extend(item for path in paths for item in files[path])
    rest = [item for item in items if not runs[item.path]]
    for number, part in enumerate(parts):
        room = len(items) // workers - len(part) if number < workers - 1 else len(rest)
        part += rest[: max(room, 0)]
        del rest[: max(room, 0)]
    items[:] = [item for part in parts for item in part]


def pytest_collection_finish() -> None:
    """Exempt everything that is imported by now from garbage collection."""
    gc.freeze()
    gc.enable()


def pytest_sessionstart(session: pytest.Session) -> None:
    """Collect garbage in the process that only deals out tests to workers."""
    if session.config.getoption("numprocesses", None):
        gc.enable()


@pytest.fixture
def clean_env(tmp_path: Path) -> dict[str, str]:
    return environment(tmp_path / "home")


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """A workplace that the tests of a module share."""
    return Workplace(tmp_path_factory.mktemp("place"))


@pytest.fixture
def forked() -> Iterator[Callable[..., ForkProcess]]:
    """Return a function that calls another one in a fork of this process, which needs no imports of its own."""
    started = []

    def start(target: Callable[..., object], *arguments: object) -> ForkProcess:
        started.append(multiprocessing.get_context("fork").Process(target=target, args=arguments))
        started[-1].start()
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.join()


@pytest.fixture
def mounted() -> Iterator[Callable[[Path, str], None]]:
    """Return a function that mounts a folder in memory with these options, or again with others."""
    folders = set()

    def mount(folder: Path, options: str) -> None:
        folder.mkdir(exist_ok=True)
        again = "remount," if folder.is_mount() else ""
        command = ["mount", "-t", "tmpfs", "-o", again + options, "tmpfs", str(folder)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("only root can mount a file system")
        folders.add(folder)

    yield mount
    for folder in folders:
        subprocess.run(["umount", str(folder)], check=True)


SECRETS = {
    "WANDB_API_KEY": "5ec2e7" * 6 + "abcd",
    "HF_TOKEN": "hf_5ec2e7TokenThatNoFileMayHold",
    "HUGGING_FACE_HUB_TOKEN": "hf_5ec2e7OldNameOfTheSame",
    "OPENAI_API_KEY": "sk-5ec2e7SomeOtherKeyInTheEnvironment",
}
TASKS = ("summarisation", "question_answering", "data_to_text", "instruction_following")
SMOKE = ("+experiment=smoke", "trainer.max_steps=6", *(f"eval.tasks.{task}.max_new_tokens=6" for task in TASKS))


def pytest_make_parametrize_id(val: object) -> str | None:
    """Keep contents of files out of names: xdist needs the same names in each process, and gzip writes the time."""
    return "bytes" if isinstance(val, bytes) else None


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """A workplace with one finished run, tracked by W&B offline, with secrets in its environment. Read only.

    One worker makes it for all.
    """
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "finished"
    folder.mkdir(exist_ok=True)
    place, made = Workplace(folder), folder / "made"
    with FileLock(f"{folder}.lock"):
        if not made.exists():
            done = place.verb("train", *SMOKE, "tracking=wandb", "tracking.mode=offline", env=SECRETS)
            assert done.returncode == 0, done.stderr
            made.touch()
    return place


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """An empty hub on localhost; `hub.env(home)` points a subprocess at it."""
    with Hub(tmp_path / "hub") as running:
        yield running


@pytest.fixture
def run_python(clean_env: dict[str, str], tmp_path: Path) -> Run:
    """Return a function that runs Python with these arguments in the clean environment, in `tmp_path`."""

    def run(*arguments: str, env: Mapping[str, str] | None = None, cwd: Path = tmp_path, **options: Any) -> Done:
        return run_in(arguments, {**clean_env, **(env or {})}, cwd, **options)

    return run


@pytest.fixture
def run_verb(run_python: Run) -> Run:
    """Return a function that runs `python -m tometune.VERB override…` in the clean environment, in `tmp_path`."""
    return lambda verb, *overrides, **options: run_python("-m", f"tometune.{verb}", *overrides, **options)
