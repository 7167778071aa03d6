"""Each launcher's preset: two runs with the results of the basic launcher, and one line if its package is missing.

One test of the launcher `processes` runs by default, everything else nightly.
"""

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
from hydra import compose, initialize_config_dir
from hydra.errors import MissingConfigException
from omegaconf import OmegaConf

from tests.sweep.conftest import SWEEP, runs_in
from tests.whole import Workplace, adapter_of, record_of, scores_of
from tometune.config.command_line import CommandLine
from tometune.config.error_messages import PLUGINS, explain
from tometune.config.root import conf_dir, register
from tometune.config.sweep_cells import jobs_of

register()

PACKAGES = {"ray": "hydra_plugins.hydra_ray_launcher", "submitit": "submitit", "slurm": "submitit"}
PRESETS = sorted(path.stem for path in (conf_dir() / "hydra" / "launcher").glob("*.yaml"))


def needs(launcher: str) -> None:
    if (package := PACKAGES.get(launcher.partition("_")[0])) is not None:
        pytest.importorskip(package)


NO_GPU = "hydra.launcher.ray.remote.num_gpus=0"


def check_runs(finished: Path, name: str, stderr: str) -> None:
    found, expected = runs_in(finished.with_name(name)), runs_in(finished)
    assert list(found) == list(expected), stderr
    for run_id, run in found.items():
        assert record_of(run)["status"] == "completed"
        assert adapter_of(run) == adapter_of(expected[run_id])
        assert scores_of(run) == scores_of(expected[run_id])


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
    ("name", "more"),
    [("submitit", []), ("ray_local", [NO_GPU, "+hydra.launcher.ray.init.num_cpus=2"]), ("ray_cluster", [NO_GPU])],
)
def test_two_runs(place, finished, name, more, request):
    needs(name)
    env = request.getfixturevalue("cluster") if name == "ray_cluster" else {}
    command = ("train", *SWEEP, f"sweep.name={name}", f"hydra/launcher={name}", *more)
    done = place.verb(*command, env=env)
    assert done.returncode == 0, done.stderr
    check_runs(finished, name, done.stderr)
    again = place.verb(*command, env=env)
    assert (again.returncode, again.stderr) == (0, f"sweep multirun/{name}: 2 runs, 2 completed\n")


@pytest.mark.whole
def test_processes_make_the_same_runs_and_report_errors_at_the_end(place, finished):
    """The base has only 1,000 rows, which is noticed in the run's process."""
    launcher = ("sweep.name=failing", "hydra/launcher=processes")
    done = place.verb("train", *SWEEP, "data.rows=64,100000", *launcher)
    check_runs(finished, "failing", done.stderr)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    *_, count, one, two = done.stderr.splitlines()
    assert count == "2 of 4 runs are missing:", done.stderr
    for line in (one, two):
        assert re.match(r"  tiny-pydocs_64-s[01]-\w{8}: failed: data\.base\.rows=100000: the base has 1,000 ", line)
    cells = json.loads((finished.with_name("failing") / "sweep.json").read_text())["cells"]
    assert ["error" in cell for cell in cells] == [False, True, False, True]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_built_on_a_known_plugin_and_composes(name):
    text = (conf_dir() / "hydra" / "launcher" / f"{name}.yaml").read_text()
    assert {*PLUGINS, *PRESETS} & set(OmegaConf.create(text).defaults)
    needs(name)
    small = ["model=tiny", "eval=pydocs", "data=pydocs_1k"]
    jobs = jobs_of(CommandLine([*small, "+sweep=seeds", f"hydra/launcher={name}"]))
    assert len(jobs.known) == 3


@pytest.mark.nightly
def test_the_batch_file_for_slurm(tmp_path, monkeypatch):
    """The file that submitit writes, with a fake sbatch."""
    submitit = pytest.importorskip("submitit")
    queue_config = pytest.importorskip("hydra_plugins.hydra_submitit_launcher.config").BaseQueueConf
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text(f'#!/bin/sh\ncp "$1" {tmp_path}/batch.sh\necho "Submitted batch job 7"\nexit 0\n')
    srun = sbatch.with_name("srun")
    srun.write_text("#!/bin/sh\n")
    for script in (sbatch, srun):
        script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{sbatch.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("train", ["hydra/launcher=slurm", "hydra.launcher.partition=gpu"], return_hydra_config=True)
    params = OmegaConf.to_container(config.hydra.launcher)
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
