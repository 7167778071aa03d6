"""Plugins of Hydra: the presets of launchers, whose runs have the results of the basic launcher, and a search."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hydra.errors import MissingConfigException
from omegaconf import OmegaConf

from tests.config.conftest import composed, config_of
from tests.data.conftest import error_of
from tests.sweep.conftest import SWEEP, check_runs
from tests.whole import Workplace, record_of
from tometune.config.command_line import CommandLine
from tometune.config.error_messages import PLUGINS, explain
from tometune.config.root import conf_dir, register
from tometune.config.sweep_cells import jobs_of
from tometune.evaluation.tasks import load_tasks
from tometune.sweep.hooks import begin_sweep
from tometune.sweep.plan import plan_sweep

register()

RAY = "hydra_plugins.hydra_ray_launcher"
NO_GPU = "hydra.launcher.ray.remote.num_gpus=0"
SEARCH = (
    *("+sweep=optuna_pydocs", "model=tiny", "trainer=debug", "tracking=none", "eval.limit=1", "data.rows=64"),
    *("~eval.tasks.summarisation", "~eval.tasks.question_answering", "hydra.sweeper.n_trials=3"),
)
OPTUNA = "hydra_plugins.hydra_optuna_sweeper"


@pytest.fixture
def cluster(place: Workplace) -> Iterator[dict[str, str]]:
    """A ray cluster that is up; the environment in which it is found."""
    ray = Path(sys.executable).with_name("ray")
    folder = tempfile.mkdtemp(prefix="ray")  # it holds sockets, whose paths must be short
    env = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "RAY_ADDRESS": "127.0.0.1:6399"}
    start = [ray, "start", "--head", "--port=6399", "--num-cpus=2", "--include-dashboard=false", f"--temp-dir={folder}"]
    head = subprocess.Popen([*start, "--block"], env={**place.env, **env}, stdout=subprocess.PIPE, text=True)
    assert any("Ray runtime started" in line for line in head.stdout)
    yield env
    for process in [*psutil.Process(head.pid).children(recursive=True), head]:
        process.kill()
    head.communicate()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.nightly
@pytest.mark.whole
@pytest.mark.parametrize(
    ("name", "package", "more"),
    [
        ("submitit", "submitit", []),
        ("ray_local", RAY, [NO_GPU, "+hydra.launcher.ray.init.num_cpus=2"]),
        ("ray_cluster", RAY, [NO_GPU]),
    ],
)
def test_two_runs(place, finished, name, package, more, request):
    pytest.importorskip(package)
    env = request.getfixturevalue("cluster") if name == "ray_cluster" else {}
    command = ("train", *SWEEP, f"sweep.name={name}", f"hydra/launcher={name}", *more)
    done = place.verb(*command, env=env)
    assert done.returncode == 0, done.stderr
    check_runs(finished, name, done.stderr)
    again = place.verb(*command, env=env)
    assert (again.returncode, again.stderr) == (0, f"sweep multirun/{name}: 2 runs, 2 completed\n")


def test_each_preset_is_built_on_a_known_plugin():
    presets = {path.stem: OmegaConf.load(path).defaults for path in conf_dir().glob("hydra/launcher/*.yaml")}
    assert [name for name, defaults in presets.items() if not {*PLUGINS, *presets} & {*defaults}] == []


@pytest.mark.nightly
def test_the_batch_file_for_slurm(tmp_path, monkeypatch):
    """The file that submitit writes, with a fake sbatch."""
    submitit = pytest.importorskip("submitit")
    queue_config = pytest.importorskip("hydra_plugins.hydra_submitit_launcher.config").BaseQueueConf
    for name, script in (("sbatch", f'cp "$1" {tmp_path}/batch.sh\necho "Submitted batch job 7"\n'), ("srun", "")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    params = OmegaConf.to_container(composed("hydra/launcher=slurm", "hydra.launcher.partition=gpu").hydra.launcher)
    assert isinstance(params, dict)
    general = set(OmegaConf.structured(queue_config))
    executor = submitit.AutoExecutor(folder=tmp_path, cluster="slurm", slurm_max_num_timeout=params["max_num_timeout"])
    left_out = {"_target_", "submitit_folder", "max_num_timeout", "name"}
    executor.update_parameters(
        **{str(key) if key in general else f"slurm_{key}": params[key] for key in params if key not in left_out}
    )
    executor.map_array(print, range(9))
    text = (tmp_path / "batch.sh").read_text()
    wanted = ("array=0-8%9", "gpus-per-node=1", "nodes=1", "partition=gpu", "time=720", "requeue", "signal=USR2@120")
    assert [line for line in wanted if f"#SBATCH --{line}\n" not in text] == [], text


@pytest.mark.parametrize("option", PLUGINS)
def test_a_missing_package_is_one_line(option):
    group = "hydra/sweeper" if option == "optuna" else "hydra/launcher"
    text = f"Could not find '{group}/{option}'\n\nAvailable options in '{group}':\n\tbasic"
    error = MissingConfigException(text, missing_cfg_file=f"{group}/{option}", options=["basic"])
    assert explain(error) == f"{group}={option}: not installed; pip install {PLUGINS[option]}"


@pytest.mark.nightly
@pytest.mark.whole
def test_three_trials_and_the_same_command_again(place):
    pytest.importorskip(OPTUNA)
    done = place.verb("train", *SEARCH)
    assert done.returncode == 0, done.stderr
    folder = place.folder / "multirun" / "optuna_pydocs"
    records = [record_of(path.parent) for path in folder.glob("*/run.json")]
    assert [record["status"] for record in records] == ["completed"] * 3
    best = OmegaConf.load(folder / "optimization_results.yaml")
    assert best.best_value == max(record["eval"]["tuned"]["rougeL"] for record in records)
    assert {*best.best_params} >= {"lora.r", "lora.lora_alpha", "trainer.learning_rate"}
    cells = json.loads((folder / "sweep.json").read_text())["cells"]
    assert sorted(cell["run_id"] for cell in cells) == sorted(record["run_id"] for record in records)
    again = place.verb("train", *SEARCH)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("nothing to do") == 3, "the draws follow the seed"


def test_the_runs_of_a_search_are_not_known_before_and_the_test_tasks_do_not_guide_it():
    pytest.importorskip(OPTUNA)
    jobs = jobs_of(CommandLine([*SEARCH]))
    assert (jobs.search, jobs.known, jobs.config.eval.validation) == (True, [], True)
    assert begin_sweep(jobs)
    jobs.config.eval.validation = False
    assert error_of(begin_sweep, jobs).startswith("eval=pydocs_validation: a search would choose settings by the")
    assert error_of(plan_sweep, jobs, print).startswith("plan=true: the runs of a search are not known in advance")


def test_validation_and_test_share_no_entry_of_the_documentation():
    whole = [f"eval.tasks.{name}.limit=null" for name in ("summarisation", "question_answering", "data_to_text")]
    tested, validated = (
        {
            task.name: {re.sub(r"-\d+$", "", example.id) for example in task.examples}
            for task in load_tasks(config_of(f"eval={group}", *whole).eval)
        }
        for group in ("pydocs", "pydocs_validation")
    )
    for name, entries in tested.items():
        assert not entries & validated[name], name
        assert len(validated[name]) >= 20, name
