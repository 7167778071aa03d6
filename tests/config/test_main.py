"""The verb decorator: typed config, exit statuses, sweeps, help, and no import of a large library."""

import importlib
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.config.conftest import config_of
from tometune import train
from tometune.__main__ import verbs
from tometune.common.cache import cached_folder
from tometune.common.errors import UserError
from tometune.common.files import write_json
from tometune.common.process import Stopped
from tometune.config.app import RESUMED, name_of
from tometune.config.sweep_cells import slug

HEAVY = ("torch", "transformers", "trl", "peft", "datasets", "evaluate", "wandb", "accelerate")
WATCH = f"""
import contextlib, io, json, os, runpy, sys
for arguments in json.loads(sys.argv.pop()):
    sys.argv = ["tometune", *arguments]
    out, err, status = io.StringIO(), io.StringIO(), 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            runpy.run_module("tometune", run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        status = stop.code or 0
    heavy = sorted(set({HEAVY!r}) & set(sys.modules))
    print(json.dumps([status, out.getvalue(), err.getvalue(), heavy]))
"""


@pytest.mark.parametrize(
    ("error", "name", "status", "line"),
    [
        (UserError("data.base.path=x: no such file; check it"), "train", 2, "data.base.path=x: no such file; check it"),
        (RuntimeError("two\nlines"), "train", 1, "RuntimeError: two lines (HYDRA_FULL_ERROR=1 shows the traceback)"),
        (KeyboardInterrupt(), "train", 130, "interrupted; run the same command again to resume"),
        (KeyboardInterrupt(), "report", 130, "interrupted"),
        (Stopped(signal.SIGTERM), "train", 143, "stopped by SIGTERM; run the same command again to resume"),
    ],
)
def test_an_error_is_one_line(command, error, name, status, line):
    outcome = command(failing={0: error}, name=name)
    assert (outcome.status, outcome.errors) == (status, [line])


def test_the_traceback_comes_on_request(command, monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    outcome = command(failing={0: RuntimeError("boom")})
    assert outcome.errors[0].startswith("Traceback")
    assert (outcome.status, outcome.errors[-1]) == (1, "RuntimeError: boom")


def test_a_verb_is_named_by_its_file():
    assert set(RESUMED) < set(verbs())
    for name in verbs():
        task = importlib.import_module(f"tometune.{name}").main
        assert name_of(task.__wrapped__) == name


READ_ONLY = "/sys/tometune"
"""A folder that not even root can make."""


@pytest.mark.skipif(not Path("/sys").is_dir(), reason="Linux has a read-only /sys")
def test_a_folder_that_cannot_be_written_is_one_line(command):
    outcome = command("-m", f"paths.multirun={READ_ONLY}", name="prepare")
    assert outcome.status == 2
    assert outcome.errors[-1].startswith(f"{READ_ONLY}: cannot be written to (")
    assert outcome.errors[-1].endswith("; set paths.multirun to another folder")
    with pytest.raises(UserError, match=f"^{READ_ONLY}: cannot be written to .*; set paths.cache to "):
        cached_folder(Path(READ_ONLY), "kind", {}, print)
    with pytest.raises(OSError, match="tometune") as error:
        write_json(Path("/sys/tometune.json"), {})
    outcome = command(failing={0: error.value})
    assert outcome.status == 2
    assert outcome.errors[0].startswith("/sys/.tometune.json.")
    assert "no access (" in outcome.errors[0]


def test_the_runs_of_a_sweep_share_a_name_and_one_that_fails_leaves_the_others(command):
    failing = {0: RuntimeError("boom"), 1: UserError("x: wrong; fix it")}
    boom, seed = "RuntimeError: boom (", "seed=-1: not from 0 to "
    for seeds, first in (("0,-1,1,2", [boom, seed]), ("-1,0,1,2", [seed, boom])):
        outcome = command("-m", f"seed={seeds}", failing=failing)
        assert outcome.status == 1
        assert [(c.seed, c.seeds.order, c.sweep.name) for c in outcome.configs] == [(n, n, "adhoc") for n in range(3)]
        lines = [*first, "x: wrong; fix it", "3 of 4 runs did not finish"]
        own = [line for line in outcome.errors if line[0] not in "\tL"]  # without Hydra's
        assert [line.startswith(start) for line, start in zip(own, lines, strict=True)] == [True] * 4, own
    outcome = command("-m", "seed=0,1", failing={0: KeyboardInterrupt()})
    assert (outcome.status, [config.seed for config in outcome.configs]) == (130, [0])


def test_the_name_follows_the_id():
    for overrides, name in (
        (["model.id=HuggingFaceTB/SmolLM2-360M-Instruct"], "smollm2-360m-instruct"),
        (["model.id=./My Models/Best One/"], "best-one"),
        (["model.id=a/b", "model.name=mine"], "mine"),
    ):
        assert config_of(*overrides).model.name == name
    assert slug(".") == slug(str(Path.cwd())), "a path without a name has a name too"
    assert slug("///") == "model"


@pytest.mark.parametrize(
    ("option", "line"),
    [
        ("--experimental-rerun=config.pickle", "--experimental-rerun: reads a pickle, which can run any code"),
        ("--config-name=mine", "--config-name, --config-path: all verbs read train.yaml"),
        ("--config-dir=none", "--config-dir=none: no such folder"),
    ],
)
def test_options_that_are_rejected(command, option, line):
    outcome = command(option)
    assert outcome.status == 2
    assert outcome.errors[0].startswith(line)


def test_the_help_lists_the_options_of_a_folder_of_ones_own(tmp_path, monkeypatch, capsys):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "of_my_own.yaml").touch()
    monkeypatch.setattr(sys, "argv", ["train", "--config-dir", str(tmp_path), "--help"])
    train.main()
    assert ", of_my_own, " in capsys.readouterr().out


def test_config_commands_import_nothing_heavy(tmp_path):
    """In a process of its own, since another test may have imported anything."""
    helps = [([name, "--help"], 0) for name in sorted(verbs())]
    wrong = (["trainer.lerning_rate=1"], ["-m", "data=mix_30k", "seed=0,1"], ["lora.r=0"])
    cases = [*helps, (["train", "--cfg", "job"], 0), *((["train", *arguments], 2) for arguments in wrong)]
    lines = json.dumps([arguments for arguments, _ in cases])
    done = subprocess.run(
        [sys.executable, "-c", WATCH, lines], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    for (arguments, expected), answer in zip(cases, done.stdout.splitlines(), strict=True):
        status, out, err, heavy = json.loads(answer)
        assert (status, heavy) == (expected, []), (arguments, err)
        assert "Traceback" not in err
        if arguments[1] == "--help":
            assert " ".join(out.split()).startswith(f"tometune {arguments[0]}: {verbs()[arguments[0]]} usage: ")
    assert list(tmp_path.iterdir()) == []
