"""A search: three trials on tiny weights, guided by validation examples that are in no test task."""

import json
import re

import pytest
import yaml

from tests.config.conftest import config_of
from tests.whole import record_of
from tometune.config.command_line import CommandLine
from tometune.config.root import register
from tometune.config.sweep_cells import jobs_of
from tometune.evaluation.tasks import load_tasks

register()

SEARCH = (
    *("+sweep=optuna_pydocs", "model=tiny", "trainer=debug", "tracking=none", "eval.limit=1", "data.rows=64"),
    *("~eval.tasks.summarisation", "~eval.tasks.question_answering", "hydra.sweeper.n_trials=3"),
)
PLUGIN = "hydra_plugins.hydra_optuna_sweeper"


@pytest.mark.nightly
@pytest.mark.whole
def test_three_trials_and_the_same_command_again(place):
    pytest.importorskip(PLUGIN)
    done = place.verb("train", *SEARCH)
    assert done.returncode == 0, done.stderr
    folder = place.folder / "multirun" / "optuna_pydocs"
    records = [record_of(path.parent) for path in folder.glob("*/run.json")]
    assert [record["status"] for record in records] == ["completed"] * 3
    best = yaml.safe_load((folder / "optimization_results.yaml").read_text())
    assert best["best_value"] == max(record["eval"]["tuned"]["rougeL"] for record in records)
    assert set(best["best_params"]) >= {"lora.r", "lora.lora_alpha", "trainer.learning_rate"}
    cells = json.loads((folder / "sweep.json").read_text())["cells"]
    assert sorted(cell["run_id"] for cell in cells) == sorted(record["run_id"] for record in records)
    again = place.verb("train", *SEARCH)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("nothing to do") == 3, "the draws follow the seed"


def test_the_runs_of_a_search_are_not_known_before_and_the_test_tasks_do_not_guide_it(place):
    pytest.importorskip(PLUGIN)
    jobs = jobs_of(CommandLine(list(SEARCH)))
    assert (jobs.search, jobs.known, jobs.config.eval.validation) == (True, [], True)
    status, stderr = place.train(*SEARCH, "eval=pydocs")
    assert (status, len(stderr.splitlines())) == (2, 1)
    assert stderr.startswith("eval=pydocs: a search would choose settings by the test tasks")


def test_validation_and_test_share_no_entry_of_the_documentation():
    whole = [f"eval.tasks.{name}.limit=null" for name in ("summarisation", "question_answering", "data_to_text")]
    entries: list[dict[str, set[str]]] = []
    for group in ("pydocs", "pydocs_validation"):
        tasks = load_tasks(config_of(f"eval={group}", *whole).eval)
        entries.append({task.name: {re.sub(r"-\d+$", "", entry.id) for entry in task.examples} for task in tasks})
    for name, tested in entries[0].items():
        assert not tested & entries[1][name], name
        assert len(entries[1][name]) >= 20, name
