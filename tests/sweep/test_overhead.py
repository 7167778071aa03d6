"""The overhead of a sweep: how often things are loaded, and CPU time, which other work hardly changes."""

import json
import resource

import pytest

from tests.whole import Workplace, run_python

pytestmark = pytest.mark.whole

TASKS = ("~eval.tasks.summarisation", "~eval.tasks.question_answering", "~eval.tasks.data_to_text")
TINY = ("+experiment=smoke", *TASKS, "eval.base=false", "eval.limit=1", "trainer.max_steps=2")
COUNT = """
import collections, json, pkgutil, runpy
counts = collections.Counter()
def counted(place):
    module, full_name = place.split(":")
    name = full_name.rpartition(".")[2]
    owner = pkgutil.resolve_name(place.rpartition("." if "." in full_name else ":")[0])
    real = getattr(owner, name)
    def call(*arguments, **keywords):
        counts[full_name] += 1
        return real(*arguments, **keywords)
    setattr(owner, name, call)
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
    """A workplace with a finished sweep of two runs and a full cache."""
    made = Workplace(tmp_path_factory.mktemp("overhead"))
    status, stderr = made.train("-m", *TINY, "seed=0,1", "sweep.name=finished")
    assert status == 0, stderr
    return made


def test_a_run_of_a_sweep_loads_all_once_and_a_finished_one_nothing(place: Workplace) -> None:
    script = place.folder / "count.py"
    script.write_text(COUNT.replace("PLACES", repr(PLACES)))
    done = place.python(str(script), "-m", *TINY, "seed=0,1,6,7", "sweep.name=finished")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {name.partition(":")[2]: 2 for name in PLACES}


def cpu_seconds(place: Workplace, *overrides: str) -> float:
    """Run `train` in a new process and return its CPU time, including imports."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = run_python(("-m", "tometune.train", *overrides), place.env, place.folder, 300, fresh=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.nightly
def test_a_finished_run_takes_at_most_a_second(place: Workplace) -> None:
    """The difference between commands with two and with one finished run, so that start and report cancel out."""
    sweep = ("-m", *TINY, "sweep.name=finished")
    more = cpu_seconds(place, *sweep, "seed=0,1") - cpu_seconds(place, *sweep, "seed=0")
    print(f"a finished run: {more:.2f} s of CPU")
    assert more <= 1.0
