"""What a sweep adds to its runs: by what is loaded how often, and by CPU time, which other work hardly changes."""

import json
import resource
from pathlib import Path

import pytest

from tests.whole import Workplace

pytestmark = pytest.mark.whole

TASKS = ("~eval.tasks.summarisation", "~eval.tasks.question_answering", "~eval.tasks.data_to_text")
TINY = ("+experiment=smoke", *TASKS, "eval.base=false", "eval.limit=1", "trainer.max_steps=2")
COUNT = """
import collections, importlib, json, runpy
counts = collections.Counter()
def counted(place):
    module, name = place.split(":")
    module = importlib.import_module(module)
    told = name
    *owners, name = name.split(".")
    for owner in owners:
        module = getattr(module, owner)
    real = getattr(module, name)
    def call(*arguments, **keywords):
        counts[told] += 1
        return real(*arguments, **keywords)
    setattr(module, name, call)
for place in PLACES:
    counted(place)
runpy.run_module("tometune.train", run_name="__main__", alter_sys=True)
print(json.dumps(counts))
"""
PLACES = (
    *("tometune.models.load:load_model", "tometune.models.tokenizer:load_tokenizer"),
    *("tometune.data.mix:build_mix", "tometune.data.tokens:tokenise", "tometune.evaluation.tasks:load_tasks"),
    *("tometune.training.sft:fit", "tometune.evaluation.scoring:Scorer.stage"),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    made = Workplace(tmp_path_factory.mktemp("overhead"))
    status, stderr = made.train(*TINY, "seed=100")  # fills the cache
    assert status == 0, stderr
    return made


@pytest.fixture(scope="module")
def sweep_seconds(place: Workplace) -> float:
    """CPU time of a sweep of three runs, which are there from then on."""
    return cpu_seconds(place, "-m", *TINY, "seed=0,1,2", "sweep.name=three")


def cpu_seconds(place: Workplace, *overrides: str) -> float:
    """Run `train` in a process of its own and return its CPU time, imports included."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = place.verb("train", *overrides)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_a_sweep_takes_at_most_a_tenth_more_than_its_runs_one_by_one(place: Workplace, sweep_seconds: float) -> None:
    """It takes less, for it imports once: what a sweep does around its runs has to fit into what that saves."""
    single = sum(cpu_seconds(place, *TINY, f"seed={seed}") for seed in (3, 4)) / 2
    print(f"a sweep of 3: {sweep_seconds:.1f} s of CPU; one run: {single:.1f} s")
    assert sweep_seconds <= 1.1 * 3 * single


def test_a_finished_run_takes_at_most_a_second(place: Workplace, sweep_seconds: float) -> None:
    """Of two more in a command of three: the command's own start and its report are in both and cancel out."""
    sweep = ("-m", *TINY, "sweep.name=three")
    more = (cpu_seconds(place, *sweep, "seed=0,1,2") - cpu_seconds(place, *sweep, "seed=0")) / 2
    print(f"a finished run: {more:.2f} s of CPU")
    assert more <= 1.0


@pytest.mark.usefixtures("sweep_seconds")
def test_a_run_of_a_sweep_loads_all_once_and_a_finished_one_nothing(place: Workplace) -> None:
    script = place.folder / "count.py"
    script.write_text(COUNT.replace("PLACES", repr(PLACES)))
    wanted = {name.partition(":")[2] for name in PLACES}
    single = counts_of(place, script, *TINY, "seed=5")
    assert single == dict.fromkeys(wanted, 1)
    assert counts_of(place, script, "-m", *TINY, "seed=0,1,2,6,7", "sweep.name=three") == dict.fromkeys(wanted, 2)


def counts_of(place: Workplace, script: Path, *overrides: str) -> dict[str, int]:
    """Run `train` and return how often each of `PLACES` was called."""
    done = place.python(str(script), *overrides)
    assert done.returncode == 0, done.stderr
    counts: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return counts
