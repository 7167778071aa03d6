"""A tracked run of three steps, in a process of its own: `track.py FOLDER '{"mode": "auto", …}'`; prints JSON."""

import json
import logging
import sys
import time
from pathlib import Path

from tests.tracking.test_tracker import write_predictions
from tometune.common.errors import UserError
from tometune.config.tracking import Tracker, TrackingConfig, TrackingMode
from tometune.tracking.tracker import RunLabels, start_tracker

RUN_ID = "tiny-mix:1k-s0-abcdef01"  # a colon is what W&B does not take


def main(folder: Path, first_step: int, choice: dict) -> None:
    results, pause = choice.pop("results", True), choice.pop("pause", 0)
    enums = {"tracker": Tracker(choice.pop("tracker", "wandb")), "mode": TrackingMode(choice.pop("mode", "auto"))}
    config = TrackingConfig(**enums, **choice)
    (folder / "adapter").mkdir(parents=True, exist_ok=True)
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(b"weights")
    (folder / "mix.json").write_text('{"rows": 3}')
    write_predictions(folder, "base", "qa", 2)
    record = {
        "data": {"name": "mix", "rows": 3},
        "model": {"name": "tiny", "id": "tiny"},
        "train": {"steps": 2},
        "eval": {"base": {"rouge1": 0.25}, "tuned": {"rouge1": 0.5}},
    }
    began = time.monotonic()
    labels = RunLabels(RUN_ID, "train", "g", folder, {"trainer": {"learning_rate": 2e-4}}, "c" * 40)
    with start_tracker(config, labels) as tracker:
        seconds = time.monotonic() - began
        for step in range(first_step, first_step + 3):
            tracker.log({"train/loss": 1 / (step + 1), "train/learning_rate": 2e-4}, step=step)
        time.sleep(pause)
        if results:
            tracker.results(record, folder, lambda: {"rougeL": 0.02, "rougeL_low": -0.01, "rougeL_high": 0.05})
        described = tracker.describe()
    heavy = [
        name for name in ("wandb", "trackio", "mlflow", "tensorboard", "torch", "transformers") if name in sys.modules
    ]
    print(json.dumps({"tracking": described, "seconds": seconds, "modules": heavy, "after": tracker.describe()}))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(message)s")
    try:
        main(Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3]))
    except UserError as error:
        sys.exit(f"UserError {error}")
