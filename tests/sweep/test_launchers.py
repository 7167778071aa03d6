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

from tests.whole import Workplace, adapter_of, record_of, scores_of
from tometune.config.command_line import CommandLine
from tometune.config.error_messages import PLUGINS, explain
from tometune.config.jobs import jobs_of
from tometune.config.root import conf_dir, register

register()

TASKS = ("~eval.tasks.summarisation", "~eval.tasks.question_answering", "~eval.tasks.data_to_text")
SWEEP = ("-m", "+experiment=smoke", *TASKS, "eval.base=false", "eval.limit=1", "trainer.max_steps=2", "seed=0,1")
PACKAGES = {"ray": "hydra_plugins.hydra_ray_launcher", "submitit": "submitit", "slurm": "submitit"}
PRESETS = sorted(path.stem for path in (conf_dir() / "hydra" / "launcher").glob("*.yaml"))


@pytest.fixture(scope="module")
def basic(place: Workplace) -> dict[str, Path]:
    """The two runs, one after the other in one process, by their ids."""
    status, stderr = place.train(*SWEEP, "sweep.name=basic")
    assert status == 0, stderr
    return runs_in(place, "basic")


def needs(launcher: str) -> None:
    """Skip the test if the package of a launcher is not installed."""
    if (package := PACKAGES.get(launcher.partition("_")[0])) is not None:
        pytest.importorskip(package)


def runs_in(place: Workplace, name: str) -> dict[str, Path]:
    return {path.parent.name: path.parent for path in sorted(place.folder.glob(f"multirun/{name}/*/run.json"))}


NO_GPU = "hydra.launcher.ray.remote.num_gpus=0"
RAY = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "RAY_ADDRESS": "127.0.0.1:6399"}


def check_runs(place: Workplace, basic: dict[str, Path], name: str, stderr: str) -> None:
    """Check that the runs are those of the plain sweep."""
    runs = runs_in(place, name)
    assert sorted(runs) == sorted(basic), stderr
    for run_id, run in runs.items():
        assert record_of(run)["status"] == "completed"
        assert adapter_of(run) == adapter_of(basic[run_id])
        assert scores_of(run) == scores_of(basic[run_id])


@pytest.fixture
def cluster(place: Workplace) -> Iterator[None]:
    """A ray cluster that is up."""
    needs("ray_cluster")
    ray = Path(sys.executable).with_name("ray")
    folder = tempfile.mkdtemp(prefix="ray")  # it holds sockets, whose paths must be short
    start = [ray, "start", "--head", "--port=6399", "--num-cpus=2", "--include-dashboard=false", f"--temp-dir={folder}"]
    head = subprocess.Popen([*start, "--block"], env={**place.env, **RAY}, stdout=subprocess.PIPE, text=True)
    assert head.stdout is not None
    assert any("Ray runtime started" in line for line in head.stdout)
    yield
    for process in [*psutil.Process(head.pid).children(recursive=True), head]:
        process.kill()
    head.communicate()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.nightly
@pytest.mark.whole
@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("submitit", []),
        ("ray_local", [NO_GPU, "+hydra.launcher.ray.init.num_cpus=2"]),
        pytest.param("ray_cluster", [NO_GPU], marks=pytest.mark.usefixtures("cluster")),
    ],
)
def test_two_runs(place: Workplace, basic: dict[str, Path], name: str, more: list[str]) -> None:
    needs(name)
    env = RAY if name == "ray_cluster" else {}
    command = ("train", *SWEEP, f"sweep.name={name}", f"hydra/launcher={name}", *more)
    done = place.verb(*command, env=env)
    assert done.returncode == 0, done.stderr
    check_runs(place, basic, name, done.stderr)
    again = place.verb(*command, env=env)
    assert (again.returncode, again.stderr) == (0, f"sweep multirun/{name}: 2 runs, 2 completed\n")


@pytest.mark.whole
def test_processes_make_the_same_runs_and_report_errors_at_the_end(place: Workplace, basic: dict[str, Path]) -> None:
    """The base has only 1,000 rows, which is noticed in the run's process."""
    launcher = ("sweep.name=failing", "hydra/launcher=processes")
    done = place.verb("train", *SWEEP, "data.rows=64,100000", *launcher)
    check_runs(place, basic, "failing", done.stderr)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    *_, count, one, two = done.stderr.splitlines()
    assert count == "2 of 4 runs are missing:", done.stderr
    for line in (one, two):
        assert re.match(r"  tiny-pydocs_64-s[01]-\w{8}: failed: data\.base\.rows=100000: the base has 1,000 ", line)
    cells = json.loads((place.folder / "multirun" / "failing" / "sweep.json").read_text())["cells"]
    assert ["error" in cell for cell in cells] == [False, True, False, True]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_built_on_a_known_plugin_and_composes(name: str) -> None:
    text = (conf_dir() / "hydra" / "launcher" / f"{name}.yaml").read_text()
    assert {*PLUGINS, *PRESETS} & set(OmegaConf.create(text).defaults)
    needs(name)
    small = ["model=tiny", "eval=pydocs", "data=pydocs_1k"]
    jobs = jobs_of(CommandLine([*small, "+sweep=seeds", f"hydra/launcher={name}"]))
    assert jobs is not None
    assert len(jobs.known) == 3


@pytest.mark.nightly
def test_the_batch_file_for_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_a_missing_package_is_one_line(option: str) -> None:
    group = "hydra/sweeper" if option == "optuna" else "hydra/launcher"
    text = f"Could not find '{group}/{option}'\n\nAvailable options in '{group}':\n\tbasic"
    error = MissingConfigException(text, missing_cfg_file=f"{group}/{option}", options=["basic"])
    assert explain(error, []) == f"{group}={option}: not installed; pip install {PLUGINS[option]}"
