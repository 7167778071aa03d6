"""Schema of the whole config: the groups, the seeds, the paths."""

from dataclasses import dataclass, field
from typing import Any

from tometune.config.chat import ChatConfig, Interface
from tometune.config.data import DataConfig
from tometune.config.eval import EvalConfig
from tometune.config.export import ExportConfig
from tometune.config.lora import LoraConfig
from tometune.config.model import ModelConfig
from tometune.config.tracking import Publish, TrackingConfig
from tometune.config.trainer import TrainerConfig


@dataclass
class SeedsConfig:
    """One stream a cause of variation; each follows `seed` until it is set on its own."""

    data: int = 0
    """Which pool rows are drawn into the mix."""

    order: int = 0
    """In which order the rows are trained on."""

    adapter: int = 0
    """Initial adapter weights, and the dropout masks."""

    generation: int = 0
    """Drawn answers (`eval.temperature` above 0); greedy decoding does not use it."""


@dataclass
class SweepConfig:
    """A named set of runs."""

    name: str | None = None
    """Folder under `paths.multirun`; null means a single run under `paths.outputs`. `report` reads that folder."""

    retry_failed: bool = True
    """Whether the same command tries failed runs again; false leaves them as they are and lists them."""


@dataclass
class PathsConfig:
    """Folders. None of them is part of a run's identity."""

    outputs: str = "outputs"
    """Single runs land in `<outputs>/<run_id>/`."""

    multirun: str = "multirun"
    """Runs of a sweep land in `<multirun>/<sweep>/<run_id>/`."""

    cache: str = "~/.cache/tometune"
    """Converted models, standardised mixes and tokens; safe to delete."""


@dataclass
class Config:
    """Everything `python -m tometune.train` can be told."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """What is trained."""

    data: DataConfig = field(default_factory=DataConfig)
    """What it is trained on."""

    lora: LoraConfig = field(default_factory=LoraConfig)
    """The adapter, or that every weight is trained."""

    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    """How it is trained."""

    eval: EvalConfig = field(default_factory=EvalConfig)
    """How it is scored."""

    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """Where it is logged."""

    chat: ChatConfig = field(default_factory=ChatConfig)
    """How one talks to it."""

    export: ExportConfig = field(default_factory=ExportConfig)
    """How a run's model is exported."""

    sweep: SweepConfig = field(default_factory=SweepConfig)
    """Which set of runs it belongs to."""

    seed: int = 0
    """The seed of the run; feeds every stream of `seeds`."""

    seeds: SeedsConfig = field(default_factory=SeedsConfig)
    """The streams, where one is to be varied alone."""

    paths: PathsConfig = field(default_factory=PathsConfig)
    """Folders."""

    run: str | None = None
    """Only for `evaluate`, `export` and `chat`: a run folder, or a run id under `paths.outputs`."""

    against: str | None = None
    """Only for `chat`: what answers beside it: `base` (the run's model before training), another run, or a GGUF
    file."""

    gguf: str | None = None
    """Only for `chat`: a GGUF file to talk to, or the folder of one, in place of a run or a model."""

    ui: Interface = Interface.page
    """Only for `chat`: a page in the browser, or the terminal."""

    share: bool = False
    """Only for `chat`: whether the page is also reached from elsewhere, with a password, through Gradio's tunnel."""

    format: Any = "merged_16bit"
    """Only for `export`: `adapter`, `merged_16bit`, `gguf`, or a list of them."""

    quant: Any = "q8_0"
    """Only for `export`: weights of the GGUF, `f16`, `q8_0`, `q4_k_m` …, or a list of them."""

    push_to: str | None = None
    """Only for `export`: the hub repository that gets the exports; null keeps them on this machine."""

    private: bool = True
    """Only for `export`: whether a repository that `push_to` creates can be seen by its owner alone."""

    publish: Publish | None = None
    """Only for `report`: where the table and the pictures go beside the sweep's folder; null is nowhere."""

    plan: bool | str = False
    """Only for `train`: print the runs, which of them are done, and an estimate of time, memory and disk; make no run.

    `measure` first makes a short run if the speed is unknown.
    """
