"""A search: three trials on tiny weights, guided by validation examples that are in no test task."""

import json

import pytest
import yaml

from tests.whole import Workplace, record_of
from tometune.config.command_line import CommandLine
from tometune.config.jobs import jobs_of
from tometune.config.root import register
from tometune.evaluation.tasks import load_tasks

register()

SEARCH = (
    *("+sweep=optuna_pydocs", "model=tiny", "trainer=debug", "tracking=none", "eval.limit=1", "data.rows=64"),
    *("~eval.tasks.summarisation", "~eval.tasks.question_answering", "hydra.sweeper.n_trials=3"),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    made = Workplace(tmp_path_factory.mktemp("search"))
    return made


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


def test_a_search_by_the_test_tasks_is_refused(place: Workplace) -> None:
    status, stderr = place.train(*SEARCH, "eval=pydocs")
    assert status == 2
    assert stderr.startswith("eval=pydocs: a search would choose settings by the test tasks")
    assert len(stderr.splitlines()) == 1


def test_the_runs_of_a_search_are_not_known_before() -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    jobs = jobs_of(CommandLine(list(SEARCH)))
    assert jobs is not None
    assert (jobs.search, jobs.known, jobs.config.eval.validation) == (True, [], True)


def tasks(name: str, *more: str) -> dict[str, list[str]]:
    jobs = jobs_of(CommandLine(["-m", f"eval={name}", "seed=0,1", *more][1:], multirun=True))
    assert jobs is not None
    return {task.name: [example.id for example in task.examples] for task in load_tasks(jobs.config.eval)}


def test_validation_and_test_share_no_example() -> None:
    def entries(ids: list[str]) -> set[str]:
        return {name.rpartition("-")[0] if name.rpartition("-")[2].isdigit() else name for name in ids}

    all_of = [f"eval.tasks.{name}.limit=null" for name in ("summarisation", "question_answering", "data_to_text")]
    test, validation = tasks("pydocs", *all_of), tasks("pydocs_validation", *all_of)
    for name in test:
        assert not entries(test[name]) & entries(validation[name]), name
        assert len(validation[name]) >= 20, name
    few, full = tasks("pydocs"), test
    assert all(set(few[name]) <= set(full[name]) for name in few)
