"""Ways to damage a file, and the places whose files are damaged: runs at three points of their life, and a cache."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.whole import Workplace, adapter_of, answers_of, curve_of, record_of, timeless

TASKS = ("~eval.tasks.data_to_text", "~eval.tasks.instruction_following", "~eval.tasks.question_answering")
TRAIN = (
    *("+experiment=smoke", "trainer.max_steps=6", "trainer.learning_rate=1e-2", "eval.limit=1", *TASKS),
    *("eval.tasks.summarisation.max_new_tokens=4", "sweep.name=one", "paths.cache=cache", "eval.resamples=50"),
)
SWEEP = ("-m", *TRAIN, "seed=0,1")
STATES = {
    "finished": None,
    "in training": ("tometune.training.trainer:MeteredTrainer.training_step", 6, "SIGKILL"),
    "in scoring": ("tometune.evaluation.scoring:write_result", 2, "SIGKILL"),
}
"""Runs by the moment at which they were killed."""


def noise(path: Path) -> None:
    path.write_bytes(random.Random(path.name).randbytes(path.stat().st_size))


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def protect(path: Path) -> None:
    path.chmod(0o444)
    path.parent.chmod(0o555)


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "note.txt").write_text("not ours")


DAMAGES: dict[str, Callable[[Path], object]] = {
    "deleted": Path.unlink,
    "halved": halve,
    "emptied": lambda path: path.write_bytes(b""),
    "overwritten": noise,
    "unreadable": lambda path: path.chmod(0),
    "read-only": protect,
    "a folder": as_folder,
}
PERMISSIONS = ("unreadable", "read-only")


def allow(path: Path) -> None:
    """Undo what `PERMISSIONS` did to a file, and move a folder in its place away."""
    path.parent.chmod(0o755)
    if path.is_dir():
        shutil.rmtree(path)
    elif path.exists():
        path.chmod(0o644)


def runs_of(place: Path) -> list[Path]:
    return sorted(path for path in (place / "multirun" / "one").iterdir() if path.is_dir())


def run_of(place: Path) -> Path:
    (found,) = runs_of(place)
    return found


def make_places(folder: Path) -> None:
    """Make a place for each state, and for a sweep, below a folder; they share one cache, of which each has a copy."""
    for state, moment in STATES.items():
        (folder / state).mkdir()
        place = Workplace(folder / state)
        if (folder / "finished" / "cache").exists():
            shutil.copytree(folder / "finished" / "cache", place.folder / "cache")
        status, stderr = place.train(*TRAIN, moment=moment)
        assert status == (0 if moment is None else -9), stderr
    place = Workplace(Path(shutil.copytree(folder / "finished", folder / "sweep")))
    (place.folder / "multirun" / "one" / "sweep.json").unlink()  # its entry is of a single command
    status, stderr = place.train(*SWEEP)
    assert status == 0, stderr


def assert_whole(run: Path, expected: Path) -> None:
    """Check that a run has everything that the undisturbed one has, and the same."""
    record = record_of(run)
    assert record["status"] == "completed"
    assert timeless(record) == timeless(record_of(expected))
    assert adapter_of(run) == adapter_of(expected)
    assert (run / "adapter" / "adapter_config.json").read_bytes() == (
        expected / "adapter" / "adapter_config.json"
    ).read_bytes()
    assert answers_of(run) == answers_of(expected)
    assert curve_of(run) == curve_of(expected)
    for name in ("config.yaml", "mix.json"):
        assert (run / name).read_bytes() == (expected / name).read_bytes(), name
    scored = [path.relative_to(expected) for path in expected.glob("eval/*/*.json")]
    assert all((run / path).stat().st_size for path in scored)
