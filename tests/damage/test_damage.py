"""Every verb on runs and caches of which one file is damaged: it works, or one line gives advice that leads there.

All cases run nightly; by default a sample that is the same each day.
"""

import fcntl
import json
import random
import re
import shutil
from itertools import product
from pathlib import Path

import pytest

from tests.damage.damage import (
    DAMAGES,
    PERMISSIONS,
    STATES,
    SWEEP,
    TRAIN,
    allow,
    assert_whole,
    make_places,
    run_of,
    runs_of,
)
from tests.whole import Done, Workplace

pytestmark = [pytest.mark.whole, pytest.mark.timeout(3600)]

CHECKPOINT = (
    *("adapter_config.json", "adapter_model.safetensors", "meter.json", "metrics.jsonl", "optimizer.pt"),
    *("rng_state.pth", "scheduler.pt", "trainer_state.json", "training_args.bin", "tokenizer.json"),
)
SCORES = ("eval/{}/summarisation.json", "eval/{}/summarisation.jsonl")
EARLY = ("config.yaml", "metrics.jsonl", "mix.json", "run.json", "train.log", *(name.format("base") for name in SCORES))
ADAPTER = ("adapter/adapter_config.json", "adapter/adapter_model.safetensors")
FILES = {
    "finished": (*EARLY, *ADAPTER, *(name.format("tuned") for name in SCORES)),
    "in training": (*EARLY, *(f"checkpoints/checkpoint-4/{name}" for name in CHECKPOINT)),
    "in scoring": (*EARLY, *ADAPTER, *(f"checkpoints/checkpoint-6/{name}" for name in CHECKPOINT)),
}
"""What is damaged in a run of each state; `test_the_files_are_these` checks that nothing is left out."""

CACHE = (
    *("sources/*/rows.arrow", "sources/*/counts.json", "sources/*/config.json", "sources/*/files.json"),
    *("order/*/order.npy", "order/*/config.json", "order/*/files.json", "tokens/*/rows.arrow", "tokens/*/sizes.npy"),
    *("tokens/*/config.json", "tokens/*/files.json", "models/*/config.json", "models/*/files.json"),
    *("models/*/model/config.json", "models/*/model/generation_config.json", "models/*/model/model.safetensors"),
    *("models/*/model/tokenizer.json", "models/*/model/tokenizer_config.json", "models/*/model/chat_template.jinja"),
    *(f"base_scores/*/{name}" for name in ("scores.jsonl", "scores.json", "config.json", "files.json")),
)
SWEEP_FILES = (
    *("sweep.json", ".sweep.lock", ".report.lock", "multirun.yaml", "table.json", "table.csv", "table.md"),
    *("report.html", *(f"{{run}}/{name}" for name in FILES["finished"])),
)
"""Of the sweep, and of its first run."""

VERBS = ("train", "evaluate", "export", "report", "chat", "prepare")
NO_ACCESS = ("cannot be written to", "no access", "not writable")

Case = tuple[str, str, str, str]  # state, `sweep` or `cache`, file, damage, verb


def cases() -> list[Case]:
    found = [case for state in STATES for case in product([state], FILES[state], DAMAGES, VERBS)]
    found += product(["sweep"], SWEEP_FILES, DAMAGES, ("train -m", "report"))
    return found + list(product(["cache"], CACHE, DAMAGES, ("train", "prepare", "evaluate", "chat")))


def sampled() -> list[object]:
    """Return all cases, those outside of the sample for the night. The sample has at most one case of each file."""
    every = cases()
    draw = random.Random(16)
    by_file: dict[tuple[str, str], list[Case]] = {}
    for case in every:
        by_file.setdefault(case[:2], []).append(case)
    drawn = sorted(draw.choice(by_file[file]) for file in draw.sample(sorted(by_file), 60))
    chosen = [case for number, case in enumerate(drawn) if number % 3]  # sorted: a third fewer of each state
    return [
        pytest.param(*case, id="-".join(case), marks=[] if case in chosen else [pytest.mark.nightly]) for case in every
    ]


@pytest.fixture(scope="session")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all places, made once per test session; all workers read it."""
    shared = tmp_path_factory.getbasetemp()
    shared = (shared.parent if shared.name.startswith("popen-") else shared) / "damage"
    with shared.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not shared.exists():
            shared.mkdir()
            make_places(shared)
    return shared


def arguments_of(verb: str, run: Path) -> tuple[str, ...]:
    one = (f"run={run}", "paths.cache=cache")
    return {
        "train": TRAIN,
        "train -m": SWEEP,
        "prepare": TRAIN,
        "evaluate": (*one, "tracking=none"),
        "export": (*one, "format=adapter"),
        "report": ("sweep.name=one", "eval.resamples=50"),
        "chat": (*one, "ui=terminal"),
    }[verb]


def run_verb(place: Workplace, verb: str, run: Path, **options: bool) -> Done:
    done = place.verb(verb.removesuffix(" -m"), *arguments_of(verb, run), **options)
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.mark.parametrize(("state", "name", "damage", "verb"), sampled())
def test_no_dead_end(places, tmp_path, state, name, damage, verb):
    if state == "sweep":
        return assert_no_dead_end_of_a_sweep(places, tmp_path, name, damage, verb)
    origin = places / ("finished" if state == "cache" else state)
    place = Workplace(Path(shutil.copytree(origin, tmp_path / "place")))
    run, expected = run_of(place.folder), run_of(places / "finished")
    if state == "cache":
        (path,) = (place.folder / "cache").glob(name)
        if verb == "train":  # a run that reads the cache
            shutil.rmtree(place.folder / "multirun")
    else:
        path = run / name
    before = path.read_bytes()
    DAMAGES[damage](path)
    done = run_verb(place, verb, run, permissions=damage in PERMISSIONS)
    if done.returncode:
        assert state != "cache" or damage in PERMISSIONS, done.stderr
        assert_advice(done, verb)
        if damage in PERMISSIONS:
            allow(path)
        again = run_verb(place, "train", run)
        if again.returncode and damage == "a folder":
            assert f"{path.name}: is in the way" in again.stderr.splitlines()[-1], again.stderr
            allow(path)
            again = run_verb(place, "train", run)
        assert again.returncode == 0, f"{done.stderr}\nthen\n{again.stderr}"
        assert_whole(run, expected)
        done = run_verb(place, verb, run)
        assert done.returncode == 0, done.stderr
    allow(path)
    if verb == "train":
        assert_whole(run, expected)
    if verb == "evaluate" and state == "finished":
        assert (run / "eval" / "tuned" / "summarisation.jsonl").read_bytes() == (
            expected / "eval" / "tuned" / "summarisation.jsonl"
        ).read_bytes()
    shared = name.startswith("base_scores/")  # `prepare` does not read them, and times differ when they are made again
    if state == "cache" and (verb == "train" and path.suffix == ".jsonl" if shared else verb in ("train", "prepare")):
        assert path.read_bytes() == before


def assert_no_dead_end_of_a_sweep(places: Path, tmp_path: Path, name: str, damage: str, verb: str) -> None:
    """Check a verb on a sweep, and after that the sweep again: its runs and its report are the undisturbed ones."""
    place = Workplace(Path(shutil.copytree(places / "sweep", tmp_path / "place")))
    folder, expected = place.folder / "multirun" / "one", places / "sweep" / "multirun" / "one"
    first, *_ = runs_of(place.folder)
    path = folder / name.format(run=first.name)
    DAMAGES[damage](path)
    done = run_verb(place, verb, first, permissions=damage in PERMISSIONS)
    *_, last = done.stderr.splitlines() or [""]
    blocked = damage == "a folder" and f"{path.name}: is in the way" in done.stderr
    if done.returncode and not blocked:
        advice = ("run the sweep again",) if verb == "report" else ()
        assert any(text in last for text in (*advice, *(NO_ACCESS if damage in PERMISSIONS else ()))), done.stderr
    allow(path)
    table = json.loads((folder / "table.json").read_text()) if not (done.returncode or blocked) else None
    if table and table["missing"]:
        assert verb == "report"
        assert path.name in table["missing"][0]["reason"], table["missing"]
    elif table and damage not in PERMISSIONS:
        assert (folder / "table.json").read_bytes() == (expected / "table.json").read_bytes()
    if table is None or table["missing"]:
        done = run_verb(place, "train -m", first)
        assert done.returncode == 0, done.stderr
        verb = "train -m"
    if name == "sweep.json" and damage == "deleted" and verb == "report":
        assert "runs that never started are not known" in last
    if verb == "train -m" and damage not in PERMISSIONS:
        for run in runs_of(place.folder):
            assert_whole(run, expected / run.name)
        for file in ("sweep.json", "table.json", "table.csv", "table.md"):
            assert (folder / file).read_bytes() == (expected / file).read_bytes(), file
        assert (folder / "report.html").read_text().rstrip().endswith("</html>")  # it holds times


@pytest.mark.parametrize("folder", ["multirun", pytest.param("cache", marks=pytest.mark.nightly)])
def test_a_read_only_folder_is_one_line_or_enough(places, tmp_path, folder):
    """The runs are finished, and so is one of the sweep's two; the cache holds everything."""
    place = Workplace(Path(shutil.copytree(places / "finished", tmp_path / "place")))
    run = run_of(place.folder)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    found = [place.folder / folder, *(place.folder / folder).rglob("*")]
    for path in found:
        path.chmod(0o555 if path.is_dir() else 0o444)
    outcomes = {}
    for verb in (*VERBS, "train -m"):
        done = run_verb(place, verb, run, permissions=True)
        outcomes[verb] = done.returncode
        assert not done.returncode or any(text in done.stderr.splitlines()[-1] for text in NO_ACCESS), done.stderr
    for path in found:
        path.chmod(0o755 if path.is_dir() else 0o644)
    assert {path: path.read_bytes() for path in before} == before or folder == "cache"
    assert outcomes["train"] == outcomes["chat"] == 0
    assert outcomes.pop("train -m") == {"multirun": 2, "cache": 1}[folder], "the tokens of a run are missing"
    assert {*outcomes.values()} <= {0, 2}


def assert_advice(done: Done, verb: str) -> None:
    """Check that a verb ended with one line that advises to repeat the command, before its slow part."""
    *_, last = done.stderr.splitlines()
    assert done.returncode == 2, done.stderr
    advice = ("repeat the command that made this run (tometune train …)", "run the sweep again")
    assert any(text in last for text in (*advice, *NO_ACCESS, "is in the way")), done.stderr
    if any(text in last for text in advice):
        assert verb not in ("train", "prepare"), done.stderr
    if "is in the way" in last:  # found when it is written
        return
    assert "(reused)" not in done.stderr
    assert "examples, " not in done.stderr, "nothing was scored"


def test_the_files_are_these(places):
    for state, names in FILES.items():
        run = run_of(places / state)
        found = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
        found -= {".lock"}
        others = {name for name in found ^ set(names) if not name.startswith("checkpoints/")}
        assert (others, set(names) - found) == (set(), set()), state
    runs = runs_of(places / "sweep")
    found = {path.name for path in runs[0].parent.iterdir()} - {run.name for run in runs}
    assert found == {name for name in SWEEP_FILES if "/" not in name}
    cache = places / "finished" / "cache"
    found = {path for path in cache.rglob("*") if path.is_file() and path.name != ".lock"}
    assert {path for name in CACHE for path in cache.glob(name)} == found


@pytest.mark.nightly
def test_a_full_disk_then_space(tmp_path, mounted):
    """The disk of a run fills up at every tenth of what it writes; with space again, the same command ends the run."""
    folder = tmp_path / "multirun"
    mounted(folder, "size=100000k")
    place = Workplace(tmp_path)
    status, stderr = place.train(*TRAIN)
    assert status == 0, stderr
    used = shutil.disk_usage(folder).used // 1024
    expected = run_of(Path(shutil.copytree(folder, tmp_path / "calm" / "multirun")).parent)
    full = 0
    for step in range(1, 11):
        for path in folder.iterdir():
            shutil.rmtree(path)
        mounted(folder, f"size={used * step // 10}k")
        status, stderr = place.train(*TRAIN)
        assert "Traceback" not in stderr
        if status:
            full += 1
            assert re.search(r"no space left on the disk|No space left on device", stderr.splitlines()[-1]), stderr
        mounted(folder, "size=100000k")
        status, stderr = place.train(*TRAIN)
        assert status == 0, stderr
        assert_whole(run_of(tmp_path), expected)
    assert full >= 8
