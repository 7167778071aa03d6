"""Tracked runs in processes of their own, and offline runs of W&B, read back with its own `wandb leet inspect`.

`python -m tests.tracking.conftest FOLDER FIRST_STEP '{"mode": "auto", …}'` tracks a run of three steps; prints JSON.
"""

import json
import logging
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.whole import Done, environment
from tometune.common.errors import UserError
from tometune.config.tracking import Tracker, TrackingConfig, TrackingMode
from tometune.tracking.tracker import RunLabels, program, start_tracker

CHECKOUT = Path(__file__).parents[2]
KEY = "0123456789abcdef" * 3
DOWN = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_INIT_TIMEOUT": "2"}
RUN_ID = "tiny-mix:1k-s0-abcdef01"  # a colon is what W&B does not take
ID = "tiny-mix_1k-s0-abcdef01"
WANDB = program("wandb")
HEAVY = ("wandb", "trackio", "mlflow", "tensorboard", "torch", "transformers")


def write_predictions(folder: Path, stage: str, count: int) -> None:
    """Write `count` scored examples of the task `qa` as a run does."""
    path = folder / "eval" / stage / "qa.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for n in range(count):
            row = {"id": f"qa-{n}", "prompt": f"<|im_start|>user\nQuestion {n}?<|im_end|>\n"}
            row |= {"prediction": f"{stage} answer {n}", "references": ["one", "two"], "scores": {"rouge1": n / 10}}
            print(json.dumps(row), file=file)


def main(folder: Path, first_step: int, choice: dict) -> None:
    results, pause = choice.pop("results", True), choice.pop("pause", 0)
    enums = {"tracker": Tracker(choice.pop("tracker", "wandb")), "mode": TrackingMode(choice.pop("mode", "auto"))}
    config = TrackingConfig(**enums, **choice)
    (folder / "adapter").mkdir(parents=True, exist_ok=True)
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(b"weights")
    (folder / "mix.json").write_text('{"rows": 3}')
    write_predictions(folder, "base", 2)
    scores = {"base": {"rouge1": 0.25}, "tuned": {"rouge1": 0.5}}
    data, model = {"name": "mix", "rows": 3}, {"name": "tiny"}
    record = {"data": data, "model": model, "train": {"steps": 2}, "eval": scores}
    gains = {"rougeL": 0.02, "rougeL_low": -0.01, "rougeL_high": 0.05}
    began = time.monotonic()
    labels = RunLabels(RUN_ID, "train", "g", folder, {"trainer": {"learning_rate": 2e-4}}, "c" * 40)
    with start_tracker(config, labels) as tracker:
        seconds = time.monotonic() - began
        for step in range(first_step, first_step + 3):
            tracker.log({"train/loss": 1 / (step + 1)}, step=step)
        time.sleep(pause)
        if results:
            tracker.results(record, folder, lambda: gains)
        described = tracker.describe()
    modules = [name for name in HEAVY if name in sys.modules]
    print(json.dumps({"tracking": described, "seconds": seconds, "modules": modules, "after": tracker.describe()}))


def track_in(place: Path, first_step: int = 0, env: dict[str, str] | None = None, **choice: object) -> Done:
    """Track a run of three steps in a place with a home of its own."""
    command = ["-m", "tests.tracking.conftest", str(place / "outputs" / "run"), str(first_step), json.dumps(choice)]
    env = {**environment(place / "home"), "PYTHONPATH": str(CHECKOUT), **(env or {})}
    return subprocess.run([sys.executable, *command], env=env, capture_output=True, text=True, timeout=120, cwd=place)


@pytest.fixture
def track(tmp_path: Path) -> Callable[..., Done]:
    return partial(track_in, tmp_path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "outputs" / "run"


def inspect(*arguments: str) -> str:
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in inspect(str(folder)).splitlines()]


def the_folder(folder: Path) -> Path:
    [found] = folder.glob("wandb/offline-run-*")
    return found


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(message)s")
    try:
        main(Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3]))
    except UserError as error:
        sys.exit(f"UserError {error}")
