"""Real training on the tiny model, in this process; the trainer and its batches are kept."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch

from tests.data.conftest import files, write_jsonl
from tometune.common.seeding import seed_everything
from tometune.config.data import DataConfig
from tometune.config.model import ModelConfig, Precision, Quantization, Weights
from tometune.config.root import Config, SeedsConfig
from tometune.config.trainer import TrainerConfig
from tometune.data.mix import Mix, build_mix
from tometune.data.tokens import Tokens, tokenise
from tometune.models.load import add_adapter, load_model, load_to_train
from tometune.models.source import locate
from tometune.models.tokenizer import load_tokenizer
from tometune.training import sft
from tometune.training.batches import TrainingInputs
from tometune.training.metrics import OnLog
from tometune.training.sft import fit
from tometune.training.trainer import MeteredTrainer

MOST = 64


def talk(number: int, length: int) -> dict[str, Any]:
    answer = " ".join(f"word{number} {n}" for n in range(length // 2 + 1))
    return {"conversations": [{"from": "human", "value": f"q {number}"}, {"from": "gpt", "value": answer}]}


def settings(seed: int = 0, **trainer: Any) -> Config:
    """Return a config of the tiny model: 20 rows of two files, six steps of two rows, a high learning rate."""
    kind = {"weights": Weights.random, "quantization": Quantization.none, "precision": Precision.fp32}
    model = ModelConfig(name="tiny", id="tiny", **kind)
    quick: dict[str, Any] = {
        **{"max_length": MOST, "max_steps": 6, "save_steps": 2, "logging_steps": 1, "warmup_steps": 2},
        **{"packing": False, "conversations_per_step": 2, "micro_batch": "auto", "learning_rate": 1e-2},
    }
    return Config(model=model, trainer=TrainerConfig(**quick | trainer), seed=seed, seeds=SeedsConfig(*[seed] * 4))


def packs(max_length: int, a_step: int) -> dict[str, Any]:
    """Return settings for steps of so many packs, all in one forward pass."""
    sizes = {"max_length": max_length, "tokens_per_step": max_length * a_step, "micro_batch": a_step}
    return {"packing": True, "conversations_per_step": None, **sizes}


@dataclass
class Fitted:
    """A finished training."""

    result: SimpleNamespace
    """The entry `train` of run.json."""

    folder: Path
    mix: Mix
    tokens: Tokens
    trainer: MeteredTrainer
    batches: list[dict[str, torch.Tensor]]
    """Inputs of each forward pass."""

    @property
    def adapter(self) -> bytes:
        return (self.folder / "adapter" / "adapter_model.safetensors").read_bytes()

    @property
    def curve(self) -> list[dict[str, float]]:
        """The lines of metrics.jsonl without times and memory."""
        lines = map(json.loads, (self.folder / "metrics.jsonl").read_text().splitlines())
        return [{k: value for k, value in line.items() if not k.endswith(("_second", "_gb"))} for line in lines]

    def column(self, name: str) -> list[float]:
        return [line[name] for line in self.curve]

    @property
    def losses(self) -> list[float]:
        return self.column("loss")

    @property
    def counts(self) -> dict[str, Any]:
        """What run.json says of the training without times and memory."""
        omitted = ("seconds", "tokens_per_second", "peak_memory_bytes")
        return {name: value for name, value in vars(self.result).items() if name not in omitted}


Train = Callable[..., Fitted]


@pytest.fixture(scope="session")
def train(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Train:
    """Return a function that does what the verb does with a config, from the mix to the saved adapter.

    The mix has a base of eight rows, and twelve of the forty rows of a pool.
    """
    rows = tmp_path_factory.mktemp("data")
    base = write_jsonl(rows / "base.jsonl", [talk(n, 1 + n * 5 % 11) for n in range(8)])
    pool = write_jsonl(rows / "pool.jsonl", [talk(n, 1 + n * 7 % 17) for n in range(100, 140)])
    data = DataConfig(name="test", rows=20, base=files(base), pool=files(pool))

    def run(folder: Path, config: Config, on_log: OnLog = lambda *_: None, loss_rows: Any = ()) -> Fitted:
        batches: list[dict[str, torch.Tensor]] = []
        trainers: list[MeteredTrainer] = []

        class Kept(MeteredTrainer):
            def __init__(self, *arguments: Any, **keywords: Any) -> None:
                super().__init__(*arguments, **keywords)
                trainers.append(self)

            def training_step(self, model: Any, inputs: dict[str, Any], *arguments: Any, **keywords: Any) -> Any:
                batches.append({name: value.clone() for name, value in inputs.items() if torch.is_tensor(value)})
                return super().training_step(model, inputs, *arguments, **keywords)

        folder.mkdir(parents=True, exist_ok=True)
        mix = build_mix(data, config.seeds.data, cache)
        source = locate(config.model, cache)
        tokenizer = load_tokenizer(source)
        tokens = tokenise(mix, tokenizer, config.trainer.max_length, cache)
        seed_everything(config.seeds.adapter)
        if config.lora.enabled:
            model = add_adapter(load_model(source), config.lora, config.seeds.adapter)
        else:
            model = load_to_train(source)
        inputs = TrainingInputs(source, tokens, config.trainer, config.lora, config.seeds, folder, cache, loss_rows)
        with patch.object(sft, "MeteredTrainer", Kept):
            result = fit(model, tokenizer, inputs, on_log)
        return Fitted(SimpleNamespace(**result), folder, mix, tokens, trainers[-1], batches)

    return run


@pytest.fixture(scope="session")
def plain(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    """A finished training with the settings above; tests only look at it."""
    return train(tmp_path_factory.mktemp("plain"), settings())
