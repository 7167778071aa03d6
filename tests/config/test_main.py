"""The verb decorator: typed config, exit statuses, sweeps, help, and no import of a large library."""

import importlib
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tometune.__main__ import verbs
from tometune.common.cache import cached_folder
from tometune.common.errors import UserError
from tometune.common.files import write_json
from tometune.common.signals import Stopped
from tometune.config.app import RESUMED, name_of, report_error
from tometune.config.jobs import slug
from tometune.config.model import Backend
from tometune.config.root import Config
from tometune.sweep.cells import list_cells

HEAVY = ("torch", "transformers", "trl", "peft", "datasets", "evaluate", "wandb", "accelerate")
WATCH = f"""
import runpy, sys
sys.argv = ["tometune", *sys.argv[1:]]
try:
    runpy.run_module("tometune", run_name="__main__", alter_sys=True)
finally:
    print("heavy:", *sorted(set({HEAVY!r}) & set(sys.modules)))
"""


def test_gives_the_dataclasses(command):
    (config,) = command("model.backend=transformers", "trainer.max_steps=20", "lora.r=4").configs
    assert isinstance(config, Config)
    assert config.model.backend is Backend.transformers
    assert (config.trainer.max_steps, config.lora.r) == (20, 4)


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("data.base.path=x: no such file; check it"), 2, "data.base.path=x: no such file; check it"),
        (RuntimeError("two\nlines"), 1, "RuntimeError: two lines (HYDRA_FULL_ERROR=1 shows the traceback)"),
        (KeyboardInterrupt(), 130, "interrupted; run the same command again to resume"),
        (Stopped(signal.SIGTERM), 143, "stopped by SIGTERM; run the same command again to resume"),
    ],
)
def test_errors_are_one_line(command, error, status, line):
    outcome = command(failing={0: error})
    assert outcome.status == status
    assert outcome.errors == [line]


READ_ONLY = "/sys/tometune"
"""A folder that not even root can make."""


@pytest.mark.skipif(not Path("/sys").is_dir(), reason="Linux has a read-only /sys")
def test_a_folder_that_cannot_be_written_is_one_line(command, tmp_path):
    outcome = command("-m", "seed=0,1", f"paths.multirun={READ_ONLY}", name="prepare")
    assert outcome.status == 2
    assert outcome.errors[-1].startswith(f"{READ_ONLY}: cannot be written to (")
    assert outcome.errors[-1].endswith("; set paths.multirun to another folder")
    with pytest.raises(UserError, match=f"^{READ_ONLY}: cannot be written to .*; set paths.cache to "):
        cached_folder(Path(READ_ONLY), "kind", {}, print)
    with pytest.raises(
        UserError, match=f"^{READ_ONLY}: cannot be written to .*; set paths.multirun to another folder$"
    ):
        list_cells(Path(READ_ONLY), [])
    with pytest.raises(OSError, match="tometune") as error:
        write_json(Path("/sys/tometune.json"), {})
    outcome = command(failing={0: error.value})
    assert outcome.status == 2
    assert outcome.errors[0].startswith("/sys/.tometune.json.")
    assert "no access (" in outcome.errors[0]


def test_verbs_that_keep_nothing_do_not_promise_to_resume(capsys):
    assert report_error(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "interrupted\n"
    assert set(RESUMED) < set(verbs())
    for name in verbs():
        task = importlib.import_module(f"tometune.{name}").main
        assert name_of(task.__wrapped__) == name


def test_traceback_on_request(command, monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    outcome = command(failing={0: RuntimeError("boom")})
    assert outcome.status == 1
    assert outcome.errors[0].startswith("Traceback")
    assert outcome.errors[-1] == "RuntimeError: boom"


def test_the_task_sees_the_users_own_environment(monkeypatch, tmp_path):
    import os

    from tometune.config.app import verb

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    monkeypatch.setattr(sys, "argv", ["train"])
    seen = []

    @verb
    def main(config: Config) -> None:
        seen.append(os.environ.get("HYDRA_FULL_ERROR"))

    main()
    assert seen == [None]
    assert "HYDRA_FULL_ERROR" not in os.environ


def test_sweep_shares_a_name(command):
    outcome = command("-m", "seed=0,1", "data=mix_100k,mix_200k")
    assert outcome.status == 0
    assert [(c.seed, c.data.name, c.sweep.name) for c in outcome.configs] == [
        (seed, data, "adhoc") for seed in (0, 1) for data in ("mix_100k", "mix_200k")
    ]


def test_named_sweep_of_three_seeds(command, tmp_path):
    outcome = command("+sweep=seeds", "data=mix_200k")
    assert [(c.seed, c.seeds.order, c.sweep.name) for c in outcome.configs] == [(s, s, "seeds") for s in (0, 1, 2)]
    assert [path.name for path in (tmp_path / "multirun").iterdir()] == ["seeds"]


def test_a_failed_job_leaves_the_others(command):
    outcome = command("-m", "seed=0,1,2", failing={0: RuntimeError("boom"), 1: UserError("x: wrong; mend it")})
    assert outcome.status == 1
    assert [config.seed for config in outcome.configs] == [0, 1, 2]
    assert outcome.errors[-1] == "2 of 3 runs did not finish"
    assert "x: wrong; mend it" in outcome.errors


def test_interrupt_stops_a_sweep(command):
    outcome = command("-m", "seed=0,1", failing={0: KeyboardInterrupt()})
    assert outcome.status == 130
    assert [config.seed for config in outcome.configs] == [0]


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["model.id=HuggingFaceTB/SmolLM2-360M-Instruct"], "smollm2-360m-instruct"),
        (["model.id=./My Models/Best One/"], "best-one"),
        (["model.id=a/b", "model.name=mine"], "mine"),
        (["model=smollm2_135m"], "smollm2_135m"),
    ],
)
def test_name_follows_the_id(command, overrides, name):
    (config,) = command(*overrides).configs
    assert config.model.name == name


def test_slug_of_a_bare_dot(monkeypatch, tmp_path):
    (tmp_path / "Some_Model").mkdir()
    monkeypatch.chdir(tmp_path / "Some_Model")
    assert slug(".") == "some_model"
    assert slug("///") == "model"


def test_help(command):
    outcome = command("--help")
    assert outcome.status == 0
    assert "data: files_100k" in outcome.out
    assert "+experiment=quickstart" in outcome.out
    assert "train.yaml" in outcome.out


def test_wrong_option_with_dashes(command):
    outcome = command("--modle=tiny")
    assert outcome.status == 2
    assert outcome.errors[0].startswith("unrecognized arguments: --modle=tiny; keys are set without dashes")


def test_pickled_rerun_is_refused(command):
    outcome = command("--experimental-rerun", "config.pickle")
    assert outcome.status == 2
    assert "pickle" in outcome.errors[0]


@pytest.mark.parametrize(
    ("name", "arguments", "status"),
    [
        *((name, ["--help"], 0) for name in sorted(verbs())),
        ("train", ["--cfg", "job"], 0),
        ("train", ["trainer.lerning_rate=1"], 2),
        ("train", ["-m", "data=mix_30k,mix_100k"], 2),
        ("train", ["lora.r=0"], 2),
    ],
)
def test_config_commands_import_nothing_heavy(name, arguments, status, tmp_path):
    """In a process of its own, since another test may have imported anything. Each takes about 0.5 CPU seconds."""
    command = [sys.executable, "-c", WATCH, name, *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    assert done.stdout.splitlines()[-1].split() == ["heavy:"]
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
    if arguments == ["--help"]:
        assert done.stdout.startswith(f"tometune {name}: {verbs()[name]}")
