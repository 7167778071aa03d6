"""The whole config: its schema, its checks, and where its YAML files are."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from tometune.common.errors import ConfigError
from tometune.config.data import Contamination, DataConfig, data_problems
from tometune.config.eval import EvalConfig, eval_problems
from tometune.config.export import ExportConfig, export_problems
from tometune.config.model import Backend, LoraConfig, ModelConfig, lora_problems, model_problems
from tometune.config.report import ReportConfig, report_problems
from tometune.config.tracking import Publish, TrackingConfig, tracking_problems
from tometune.config.trainer import TrainerConfig, trainer_problems
from tometune.config.validators import NOT_FINITE, at_least, checked, file_name, folder, valid_if, value_problems

CONFIG_NAME = "train"  # the primary config of every verb: `conf/train.yaml`
ADHOC = "adhoc"  # name of a sweep without a name

Interface = StrEnum("Interface", ["page", "terminal"])  # where the chat takes place


@dataclass
class ChatConfig:
    """Chatting with a model. The sampling settings are initial values that can be changed during the chat."""

    system: str | None = None
    """System message of new conversations; null gives none (the chat template may have its own)."""
    temperature: float = field(default=0.7, metadata=at_least(0))
    """0 is greedy; above 0, tokens are sampled from softmax(logits / temperature) with `seeds.generation`."""
    top_p: float = field(default=0.9, metadata=valid_if(lambda p: 0 < p <= 1, "must be above 0 and at most 1"))
    """Sample from the most likely tokens with this total probability (arXiv:1904.09751); 1 is all tokens."""
    max_new_tokens: int = field(default=512, metadata=at_least(1))
    """Longest answer, in tokens."""
    context: int = field(default=8192, metadata=at_least(64))
    """Most tokens of conversation and answer, if the model allows as many; memory for keys and values grows with it."""
    port: int | None = field(
        default=None, metadata=valid_if(lambda port: 1 <= port <= 65535, "must be from 1 to 65535")
    )
    """Port of the page; null takes the first free one from 7860."""
    inbrowser: bool | None = None
    """Whether to open the page in a browser; null does not."""


@dataclass
class SeedsConfig:
    """One random stream per cause of variation. Each follows `seed` unless it is set."""

    data: int = 0
    """Which pool rows are drawn into the mix."""
    order: int = 0
    """The order of training: of packs, or of rows with `trainer.conversations_per_step`. Which rows share a pack does
    not depend on it."""
    adapter: int = 0
    """Initial adapter weights, and the dropout masks."""
    generation: int = 0
    """Sampled answers (`eval.temperature` above 0); greedy decoding does not use it."""


@dataclass
class SweepConfig:
    """A named set of runs."""

    name: str | None = field(default=None, metadata=checked(file_name))
    """Folder under `paths.multirun`; null means a single run under `paths.outputs`. `report` reads that folder."""
    retry_failed: bool = True
    """Whether repeating the command runs failed runs again; false only lists them."""
    design: str | None = None
    """What the sweep varies and what it holds constant, in one sentence for its report."""
    sources: list[str] = field(default_factory=list)
    """Sources of the pool that a sweep over sources has an arm for; empty takes the largest ones."""
    smallest: int = field(default=1_000, metadata=at_least(1))
    """Rows of the first mix of a sweep over sizes."""
    largest: int | None = field(default=None, metadata=at_least(1))
    """Rows of its last mix; null is those of the chosen mix."""
    add: list[int] = field(default_factory=lambda: [1_000, 10_000, 100_000], metadata=at_least(1))
    """Rows of the pool that each arm of `+sweep=does_it_help` adds."""


@dataclass
class PathsConfig:
    """Folders. None of them is part of a run's identity."""

    outputs: str = field(default="outputs", metadata=checked(folder))
    """Single runs are in `<outputs>/<run_id>/`."""
    multirun: str = field(default="multirun", metadata=checked(folder))
    """Runs of a sweep are in `<multirun>/<sweep>/<run_id>/`."""
    cache: str = field(default="~/.cache/tometune", metadata=checked(folder))
    """Converted models, standardised mixes and tokens; safe to delete."""


@dataclass
class Config:
    """Everything that can be set on the command line of a verb."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """The model that is trained."""
    data: DataConfig = field(default_factory=DataConfig)
    """The mix that it is trained on."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """The adapter, or full fine-tuning."""
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    """How it is trained."""
    eval: EvalConfig = field(default_factory=EvalConfig)
    """How it is scored."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """Where it is logged."""
    chat: ChatConfig = field(default_factory=ChatConfig)
    """Settings of `chat`."""
    export: ExportConfig = field(default_factory=ExportConfig)
    """Settings of `export`."""
    sweep: SweepConfig = field(default_factory=SweepConfig)
    """The set of runs that it belongs to."""
    report: ReportConfig = field(default_factory=ReportConfig)
    """The question that the set of runs is to answer."""
    seed: int = 0
    """The seed of the run; each of `seeds` follows it."""
    seeds: SeedsConfig = field(default_factory=SeedsConfig)
    """The streams, to vary one of them alone."""
    paths: PathsConfig = field(default_factory=PathsConfig)
    """Folders."""
    run: str | None = None
    """For `evaluate`, `export`, `report` and `chat`: a run folder, a run id under `paths.outputs`, or `latest`."""
    runs: list[str] = field(default_factory=list)
    """For `report`: finished runs to compare like the cells of a sweep, named as in `run`."""
    against: str | None = None
    """For `chat`: a second model for the same prompts: `base` (the run's base model), another run, or a GGUF file."""
    gguf: str | None = None
    """For `chat`: the GGUF file to chat with, or its folder, instead of a run or a model."""
    ui: Interface = Interface.page
    """For `chat`: where to chat, in a page in the browser or in the terminal."""
    share: bool = False
    """For `chat`: whether the page can be opened from other machines, through Gradio's servers, with a password."""
    format: Any = "merged_16bit"
    """For `export`: `adapter`, `merged_16bit`, `gguf`, or a list of them."""
    quant: Any = "q8_0"
    """For `export`: weight types of the GGUF, `f16`, `q8_0`, `q4_k_m` …, or a list of them."""
    push_to: str | None = None
    """For `export`: the hub repository to upload to; null keeps the exports on this machine."""
    private: bool = True
    """For `export`: whether a repository that `push_to` creates is visible to its owner only."""
    publish: Publish | None = None
    """For `report`: service that also gets the table and the figures; null is none."""
    require: Any = None
    """For `report`: what must hold, `A>B:METRIC>=VALUE` or a list: exit status 0 shown, 3 refuted, 4 undecided."""
    plan: bool | str = False
    """For `train`: print the runs with their cost and which are finished, and stop.

    `measure` first makes a short run if the speed is unknown.
    """


def register() -> None:
    """Register the schema with Hydra, so that unknown keys and wrong types fail."""
    ConfigStore.instance().store(name="schema", node=Config)


def conf_dir() -> Path:
    """Return the folder of the YAML files: in an installed package inside it, else the checkout's."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"


@cache
def setting_keys() -> list[str]:
    """Return the full keys of all groups and settings, e.g. `model`, `model.id`."""

    def below(node: Any, prefix: str = "") -> Iterator[str]:
        for name, child in node.items() if isinstance(node, dict) else ():
            yield f"{prefix}{name}"
            yield from below(child, f"{prefix}{name}.")

    return [*below(OmegaConf.to_container(_schema()))]


@cache
def _schema() -> DictConfig:
    """Return the schema, which takes a third of the time of `typed` to make; merging copies it."""
    schema: DictConfig = OmegaConf.structured(Config)
    return schema


def typed(composed: DictConfig) -> Config:
    """Turn a composed config, whose `hydra` node is left out, into dataclasses.

    It is merged into the schema again, because an override with a plus can add keys that the schema does not have.

    Raises:
        OmegaConfBaseException: a key is not in the schema, or a value cannot be resolved.
    """
    values: Any = OmegaConf.to_container(composed)
    values.pop("hydra", None)
    config = OmegaConf.to_object(OmegaConf.merge(_schema(), values))
    assert isinstance(config, Config)
    return config


def check(config: Config) -> None:
    """Raise ConfigError for everything that types cannot check: ranges, and settings that contradict each other."""
    checks: dict[str, Iterable[str]] = {
        "model": model_problems(config.model),
        "data": data_problems(config.data),
        "lora": lora_problems(config.lora, config.model),
        "trainer": trainer_problems(config.trainer),
        "eval": eval_problems(config.eval),
        "tracking": tracking_problems(config.tracking),
        "chat": (),
        "export": export_problems(config.format, config.quant, config.push_to, config.export),
        "seeds": _seed_problems(config),
        "paths": (),
        "sweep": (),
        "report": report_problems(config.report, config.require),
    }
    found = chain(*((*value_problems(name, getattr(config, name)), *checks[name]) for name in checks))
    same_rows = config.data.base.rows == config.data.rows  # it usually is ${data.rows}, of which one line is enough
    problems = [line for line in found if not (same_rows and line.startswith("data.base.rows="))]
    if config.data.contamination is not Contamination.report and not config.eval.tasks:
        fix = "no mix contains held-out rows or their repeats; set data.contamination=report"
        problems.append(f"data.contamination={config.data.contamination}: eval={config.eval.name} has no texts; {fix}")
    base = config.data.base.path
    for name, task in config.eval.tasks.items():
        if base and task.path and Path(base).resolve() == Path(task.path).resolve():
            fix = "name another, or hold rows out with eval=held_out"
            problems.append(f"eval.tasks.{name}.path={task.path}: the training data, which cannot be a test set; {fix}")
    if config.trainer.loss_type == "dft" and config.model.backend is Backend.unsloth:
        problems.append("trainer.loss_type=dft: Unsloth has no such loss; set model.backend=transformers")
    if config.plan != "measure" and not isinstance(config.plan, bool):
        problems.append(f"plan={config.plan}: one of true, false, measure")
    not_finite = {line.partition("=")[0]: line for line in problems if line.endswith(NOT_FINITE)}
    others = [line for line in problems if line.partition("=")[0] not in not_finite]
    if problems:
        raise ConfigError([*not_finite.values(), *others])


def _seed_problems(config: Config) -> Iterator[str]:
    largest = 2**32 - 1  # of numpy's generators
    for key, seed in {"seed": config.seed, **{f"seeds.{k}": v for k, v in vars(config.seeds).items()}}.items():
        if not 0 <= seed <= largest and (key == "seed" or seed != config.seed):
            yield f"{key}={seed}: not from 0 to {largest}"


# At import, not in register(): a launcher's worker composes configs too, and imports this module but runs no verb.
OmegaConf.register_new_resolver(
    "sweep_folder", lambda here, multirun, name: str(Path(here, multirun, name or ADHOC)), replace=True
)
OmegaConf.register_new_resolver("if", lambda condition, yes, no: yes if condition else no, replace=True)
OmegaConf.register_new_resolver("conf_dir", lambda: str(conf_dir()), replace=True)
