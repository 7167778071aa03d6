"""A search: three trials on tiny weights, guided by validation examples that are in no test task."""

import json

import pytest
import yaml

from tests.whole import Workplace, record_of
from tometune.config.command_line import CommandLine
from tometune.config.jobs import jobs_of
from tometune.config.root import register

register()

SEARCH = (
    *("+sweep=optuna_pydocs", "model=tiny", "trainer=debug", "tracking=none", "eval.limit=1", "data.rows=64"),
    *("~eval.tasks.summarisation", "~eval.tasks.question_answering", "hydra.sweeper.n_trials=3"),
)


@pytest.fixture(autouse=True, scope="module")
def needs_optuna() -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")


@pytest.mark.nightly
@pytest.mark.whole
def test_three_trials_and_the_same_command_again(place: Workplace) -> None:
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


def test_the_runs_of_a_search_are_not_known_before_and_the_test_tasks_do_not_guide_it(place: Workplace) -> None:
    jobs = jobs_of(CommandLine(list(SEARCH)))
    assert jobs is not None
    assert (jobs.search, jobs.known, jobs.config.eval.validation) == (True, [], True)
    status, stderr = place.train(*SEARCH, "eval=pydocs")
    assert status == 2
    assert stderr.startswith("eval=pydocs: a search would choose settings by the test tasks")
    assert len(stderr.splitlines()) == 1
