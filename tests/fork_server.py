"""A server that runs Python modules in forks of itself, so that each run skips the 3.4 CPU seconds of imports.

It reads one request per line and answers one line of JSON. A request is
`{"module": "tometune.train", "arguments": […], "env": {…}, "folder": "…", "timeout": 300, "moment": …, "kill": …}`,
the answer `{"status": …, "stdout": "…", "stderr": "…"}`; a negative status is the signal that ended the run.

- `"moment": ["MODULE:NAME", 3, "SIGKILL"]` sends the signal when NAME is called for the third time. With the name of an
  error number instead (`ENOSPC`), NAME raises that error from the third time on.
- `"permissions": true` takes away root's right to read and write every file.
- `"kill": ["FOLDER", 5, 0.1]` sends SIGKILL 0.1 s after the fifth new thing appears in a sweep's folder (`progress`).
"""

import atexit
import ctypes
import errno
import functools
import gc
import importlib
import json
import os
import runpy
import signal
import sys
import tempfile
import threading
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf
from omegaconf._utils import get_yaml_loader

HEAVY = (
    "tometune.training.sft",
    "tometune.evaluation.scoring",
    "evaluate",
    "tometune.data.tokens",
    "tometune.models.machine",
    "transformers.models.llama.modeling_llama",
    "peft",
    "trl",
    "datasets",
    "tometune.reporting.data_card",
    "tometune.reporting.report_files",
    "tometune.config.app",
    "sacrebleu.metrics",
    "wandb.sdk.launch.inputs.internal",  # otherwise each tracked run spends two seconds importing it
)

SIGNS = ("sweep.json", "*/run.json", "*/eval/*/*.jsonl", "*/checkpoints/checkpoint-*")


def serve() -> dict[str, Any] | None:
    """Answer requests; returns a request in the child that carries it out, None when there are no more."""
    gc.disable()  # collections during imports are slow and free nothing
    for name in HEAVY:
        importlib.import_module(name)
    Plugins.instance()  # finds Hydra's plugins, which takes each first command a third of a second
    remember_yaml()
    compose_once()
    gc.freeze()  # a fork does not look through them, and so does not copy their memory
    gc.enable()
    for line in sys.stdin:
        request = json.loads(line)
        with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
            before = progress(Path(request["kill"][0])) if request["kill"] else set()
            child = os.fork()
            if child == 0:
                signal.alarm(int(request["timeout"]))  # ends it
                os.setsid()
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                os.dup2(stdout.fileno(), 1)
                os.dup2(stderr.fileno(), 2)
                return request
            if request["kill"]:
                kill(child, before, *request["kill"])
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            for file in (stdout, stderr):
                file.seek(0)
            answer = {"status": status, "stdout": stdout.read(), "stderr": stderr.read()}
            print(json.dumps(answer), flush=True)
    return None


def remember_yaml() -> None:
    """Parse the text of each YAML file once per process; it takes a third of the time in which Hydra composes."""
    load = OmegaConf.load
    parsed = functools.cache(lambda text: yaml.load(text, get_yaml_loader()))

    def remembered(file: Any) -> Any:
        if isinstance(file, (str, Path)):
            return load(file)
        with suppress(yaml.YAMLError):  # its message names the file, which a text has not
            content = parsed(file.read())
            if isinstance(content, dict):
                return OmegaConf.create(content)
        file.seek(0)
        return load(file)

    OmegaConf.load = staticmethod(remembered)  # type: ignore[method-assign]


def compose_once() -> None:
    """Compose a config as the first command would, whose parsers and files are then known to all forks."""
    from tometune.config.root import CONFIG_NAME, conf_dir, register

    register()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        compose(CONFIG_NAME, ["+experiment=smoke", "trainer.max_steps=6"], return_hydra_config=True)


def read_hub_settings() -> None:
    """Read the variables HF_*, which the libraries of the hub read when they are imported, from this environment.

    Values that huggingface_hub copies (for progress bars, git credentials and tools for its cache) stay those of the
    server.
    """
    import datasets.config
    from huggingface_hub import constants, hf_api

    importlib.reload(constants)
    importlib.reload(datasets.config)
    hf_api.api.endpoint = constants.ENDPOINT


def kill(child: int, before: set[str], folder: str, events: int, delay: float) -> None:
    """Kill a child after so many new events, unless it ends before; somebody else waits for it."""
    while len(progress(Path(folder)) - before) < events:
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return
        time.sleep(0.01)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)  # one that has ended keeps its own status


def progress(folder: Path) -> set[str]:
    """Return what a sweep's folder shows of its progress: records, answers, checkpoints, and each line of metrics."""
    found = {str(path.relative_to(folder)) for pattern in SIGNS for path in folder.glob(pattern)}
    for path in folder.glob("*/metrics.jsonl"):
        lines = path.read_bytes().count(b"\n")
        found |= {f"{path.relative_to(folder)}:{number}" for number in range(lines)}
    return found


def arm(place: str, count: int, name: str) -> None:
    """Wrap the function `module:name` so that its `count`-th call sends a signal or raises an error."""
    module, _, path = place.partition(":")
    *owners, attribute = path.split(".")
    owner = functools.reduce(getattr, owners, importlib.import_module(module))
    real = getattr(owner, attribute)
    calls = 0

    @functools.wraps(real)
    def dying(*arguments, **keywords):
        nonlocal calls
        calls += 1
        if calls >= count and name in errno.errorcode.values():
            number = getattr(errno, name)
            raise OSError(number, os.strerror(number))
        if calls == count:
            os.kill(os.getpid(), signal.Signals[name])
        return real(*arguments, **keywords)

    setattr(owner, attribute, dying)


def obey_permissions() -> None:
    """Give up CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, by which root ignores the permissions of files."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this process
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice 32 bits
    if libc.capget(header, sets):
        raise OSError(ctypes.get_errno(), "capget")
    for place in range(3):
        sets[place] &= ~0b110
    if libc.capset(header, sets):
        raise OSError(ctypes.get_errno(), "capset")


def carry_out(request: dict[str, Any]) -> int:
    """Run the module as `python -m` would, in the request's folder and environment; returns the exit status."""
    import torch

    os.environ.clear()
    os.environ.update(request["env"])
    os.fsync = lambda descriptor: None  # tests kill processes, not machines, so written data survives without it
    read_hub_settings()
    os.chdir(request["folder"])
    torch.set_num_threads(int(request["env"].get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a parent in the background has it ignored
    sys.path[0] = request["folder"]
    sys.argv = [request["module"], *request["arguments"]]
    if request["permissions"]:
        obey_permissions()
    if request["moment"]:
        arm(*request["moment"])
    importlib.invalidate_caches()  # the server listed the package's folder when it started
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # runpy: the module was imported before
            runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


if __name__ == "__main__":
    served = serve()
    if served is not None:
        status = carry_out(served)
        # The interpreter ends as usual, but without freeing torch's objects one by one, which takes two seconds.
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
