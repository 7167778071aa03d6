"""What of a run's own files can be broken, looked at before anything is made of them."""

import json
from collections.abc import Iterable
from pathlib import Path

from safetensors import SafetensorError, safe_open

from tometune.config.errors import UserError
from tometune.models.saved import ADAPTER, WHOLE

AGAIN = "run the run's command again"


def check_adapter(folder: Path) -> None:
    """Check that an adapter's files are there and whole; of the weights only the head is read.

    Raises:
        UserError: they are not, or only as a pickle.
    """
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / name).is_file():
            pickled = (folder / "adapter_model.bin").exists()
            why = "holds its weights as a pickle, which can run code when it is read" if pickled else f"holds no {name}"
            raise UserError(f"{folder}: {why}; {AGAIN}")
    path = folder / "adapter_config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if not (config["target_modules"] and float(config["lora_alpha"]) and int(config["r"]) > 0):
            raise ValueError("no LoRA")
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: not the config of a LoRA adapter; {AGAIN}") from None
    path = folder / "adapter_model.safetensors"
    if not any(".lora_A." in name for name in _tensors(path)):
        raise UserError(f"{path}: holds no LoRA weights; {AGAIN}")


def check_trained(run: Path, adapter: bool) -> None:
    """Check that what a run trained is there and whole.

    Args:
        run: its folder.
        adapter: whether that is an adapter; else it is a whole model.

    Raises:
        UserError: it is not.
    """
    if adapter:
        check_adapter(run / ADAPTER)
    else:
        check_whole(run / WHOLE)


def check_whole(folder: Path) -> None:
    """Check that a whole model's files are there and whole; of the weights only the heads are read.

    Raises:
        UserError: they are not.
    """
    for name in ("config.json", "tokenizer_config.json"):
        if not (folder / name).is_file():
            raise UserError(f"{folder}: holds no {name}; {AGAIN}")
    index = folder / "model.safetensors.index.json"
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"] if index.exists() else {}
    except (ValueError, KeyError):
        raise UserError(f"{index}: not an index of files of weights; {AGAIN}") from None
    for name in sorted(set(places.values())) or ["model.safetensors"]:
        if not (folder / name).is_file():
            raise UserError(f"{folder}: holds no {name}; {AGAIN}")
        _tensors(folder / name)


def _tensors(path: Path) -> list[str]:
    """Return the names in a file of weights.

    Raises:
        UserError: it is broken.
    """
    try:
        with safe_open(path, framework="np") as weights:
            return list(weights.keys())
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: broken or cut off ({error}); {AGAIN}") from None


def check_examples(folder: Path, tasks: Iterable[str]) -> None:
    """Check that there are answers to hold exports against: `<task>.jsonl` of each task, none of them empty.

    Raises:
        UserError: one is missing or empty.
    """
    for task in tasks:
        path = folder / f"{task}.jsonl"
        if not path.is_file() or not path.stat().st_size:
            why = "is empty" if path.is_file() else "no such file"
            raise UserError(f"{path}: {why}; score the run again with python -m tometune.evaluate run=…")
