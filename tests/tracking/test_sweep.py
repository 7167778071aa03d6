"""The runs of a sweep in W&B: one group, each named by its cell."""

import json

import pytest

from tests.tracking.offline import inspect, records


@pytest.mark.nightly
@pytest.mark.whole
def test_one_group_per_sweep_and_one_name_per_cell(run_verb, tmp_path):
    done = run_verb("train", "-m", "+experiment=smoke", "tracking=wandb", "seed=0,1", "sweep.name=pair")
    assert done.returncode == 0, done.stderr
    folders = sorted(path.parent for path in (tmp_path / "multirun" / "pair").glob("*/run.json"))
    assert [folder.name[:17] for folder in folders] == ["tiny-pydocs_64-s0", "tiny-pydocs_64-s1"]
    for folder in folders:
        (path,) = folder.glob("wandb/offline-run-*")
        (run,) = [record["run"] for record in records(path) if record["type"] == "run"]
        assert (run["run_group"], run["job_type"], run["display_name"]) == ("pair", "train", folder.name)
        values = json.loads(inspect("--summary", str(path)))["summary"]
        assert {"data/rows", "train/tokens_per_second", "eval/tuned/rouge1"} <= set(values), "what the panels show"
        assert any("train/loss" in record["history"]["item"] for record in records(path) if record["type"] == "history")
