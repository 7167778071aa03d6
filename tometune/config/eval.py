"""Schema of the `eval` group and its tasks."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from tometune.config.metrics import metric_problem
from tometune.config.validators import NOT_IDENTITY, SINCE_DEFAULT, at_least, checked, file_name, valid_if

HARNESS = "harness_"  # beginning of the names under which tasks of `eval.harness` are kept
HELD_OUT = "held_out_"  # beginning of the names of the tasks over held-out rows (`data.held_out.rows`)
TaskKind = StrEnum("TaskKind", ["hub", "jsonl", "pydocs"])
EngineKind = StrEnum("EngineKind", ["auto", "transformers", "cuda_graph"])


@dataclass
class TaskConfig:
    """An evaluation task: examples, a prompt template, references, metrics."""

    version: int = field(default=1, metadata=at_least(1))
    """Raised with each change that makes scores incomparable with earlier ones."""
    description: str = field(default="", metadata=NOT_IDENTITY)
    """One sentence for the tables and the docs."""
    kind: TaskKind = TaskKind.jsonl
    """`hub` reads `id`, `jsonl` reads `path`, `pydocs` reads the embedded documentation of held-out modules."""
    id: str | None = field(default=None, metadata=NOT_IDENTITY)
    """Hub dataset."""
    revision: str = field(default="main", metadata=NOT_IDENTITY)
    """Commit of the hub dataset; pinned in the shipped tasks."""
    subset: str | None = None
    """Configuration name of the hub dataset, if it has several."""
    split: str = "test"
    """Split of the hub dataset, folder or JSON file; do not train on it. For `pydocs`, `test` or `validation`."""
    licence: str = field(default="", metadata=NOT_IDENTITY)
    """Licence of the examples."""
    path: str | None = field(default=None, metadata=NOT_IDENTITY)
    """JSONL, parquet or JSON file of `{input, references}` rows (and `id`, `context`), for `kind=jsonl`."""
    topic: str | None = None
    """Name of the documentation task, for `kind=pydocs`."""
    system: str | None = None
    """System message before the prompt; null gives none (the chat template may have its own)."""
    prompt: str = "{input}"
    """User message; `{field}` is replaced by that field of the example."""
    references: list[str] = field(default_factory=lambda: ["references"])
    """Fields with the references; a dot reaches into a nested field, a list field gives several references."""
    max_new_tokens: int = field(default=128, metadata=at_least(1))
    """Longest answer, in tokens."""
    metrics: list[str] = field(default_factory=lambda: ["rouge"])
    """Names of metrics, see `config/metrics.py`; `rouge` is always computed."""
    cluster: str | None = field(default=None, metadata=NOT_IDENTITY)
    """Field whose value is the same for examples that depend on each other, e.g. answers about one text.

    Intervals then resample whole clusters. It is kept with the scores, and changes none of them.
    """
    limit: int | None = field(default=None, metadata=at_least(1))
    """Number of examples, drawn with a fixed seed (the same for every run); null takes all."""


ENDPOINT = valid_if(
    lambda url: re.fullmatch(r"https?://[^@?\s]+", url),
    "not an address up to /v1, e.g. http://localhost:8080/v1, without a key, which is read from TOMETUNE_JUDGE_KEY",
)


@dataclass
class JudgeConfig:
    """A model behind an OpenAI-compatible endpoint, which compares the tuned model's answers with the base model's."""

    url: str | None = field(default=None, metadata=ENDPOINT)
    """Address up to `/v1`; null judges nothing. It is sent prompts and answers, and the key in `TOMETUNE_JUDGE_KEY`."""
    model: str | None = None
    """Name of the model there."""
    calls: int = field(default=1_000, metadata=at_least(2))
    """Most requests, two per pair, shared equally among the tasks."""


@dataclass
class EvalConfig:
    """The evaluation of the base model and the tuned model."""

    name: str = field(default="hub", metadata=NOT_IDENTITY | checked(file_name))
    """Short name of the task set."""
    tasks: dict[str, TaskConfig] = field(default_factory=dict)
    """The tasks by name; add one with `+eval/task@eval.tasks.NAME=jsonl eval.tasks.NAME.path=…`."""
    path: str | None = field(default=None, metadata=NOT_IDENTITY)
    """For `eval=own`: short for the path of its task."""
    held_out: bool = field(default=False, metadata=NOT_IDENTITY)
    """Whether rows are held out of the base (`data.held_out`) and are the tasks."""
    validation: bool = field(default=False, metadata=NOT_IDENTITY)
    """Whether the tasks are for choosing settings, and share no example with a test task."""
    base: bool = True
    """Whether the base model is scored too: without it there are no gains."""
    limit: int | None = field(default=None, metadata=at_least(1))
    """Most examples per task, for trials; scores with a limit are marked everywhere."""
    temperature: float = field(default=0.0, metadata=at_least(0))
    """0 answers greedily; above 0 draws from softmax(logits / temperature), with `seeds.generation`."""
    engine: EngineKind = EngineKind.auto
    """What generates the answers: `transformers` calls its `generate`; `cuda_graph` replays a captured step, unpadded.

    `auto` takes `cuda_graph` on an NVIDIA GPU of compute capability 8.0 or more if the model runs in 16 bits and has
    plain attention, else `transformers`. In float32 both give the same answers; in 16 bits they round differently, so
    the engine is recorded with the scores.
    """
    batch_size: int | None = field(default=None, metadata=at_least(1))
    """Prompts per batch, sorted by length; null is the largest power of two that fits into the GPU's memory.

    In float32 the batch size does not change the answers. In 16 bits it changes the rounding, which rarely changes a
    token, so it is recorded with the scores.
    """
    max_prompt_tokens: int = field(default=1792, metadata=at_least(1))
    """Longer prompts are shortened in the middle of the user message, and counted."""
    metrics: list[str] = field(default_factory=list, metadata=SINCE_DEFAULT | checked(metric_problem))
    """Metrics for every task, in addition to its own; also `module:function` for one of the user's own."""
    nll: bool = field(default=True, metadata=NOT_IDENTITY)
    """Whether `nll` is computed too: the bits per byte of the references given the prompt, one forward pass each."""
    resamples: int = field(default=10_000, metadata=NOT_IDENTITY | at_least(1))
    """Bootstrap resamples for the intervals."""
    confidence: float = field(
        default=0.95, metadata=NOT_IDENTITY | valid_if(lambda level: 0 < level < 1, "not between 0 and 1")
    )
    """Level of the intervals."""
    harness: list[str] = field(default_factory=list, metadata=NOT_IDENTITY)
    """Tasks, tags or YAML files of lm-evaluation-harness to score, too. They are inputs of the run's identity."""
    judge: JudgeConfig = field(default_factory=JudgeConfig, metadata=NOT_IDENTITY)
    """Compares the answers; it changes no score."""


def eval_problems(config: EvalConfig) -> Iterator[str]:
    """Yield the problems of the group."""
    if not config.tasks and not config.held_out:
        yield "eval.tasks: empty; choose eval=hub, eval=files or eval=pydocs, or add +eval/task@eval.tasks.NAME=jsonl"
    if config.path is not None and config.path not in [task.path for task in config.tasks.values()]:
        yield f"eval.path={config.path}: eval={config.name} does not read it; for a test set of your own write eval=own"
    for name, task in config.tasks.items():
        if problem := file_name(f"eval.tasks.{name}", name):
            yield problem
        for prefix, key in ((HELD_OUT, "data.held_out.rows"), (HARNESS, "eval.harness")):
            if name.startswith(prefix):
                yield f"eval.tasks.{name}: names beginning with {prefix} are for {key}; choose another name"
        yield from _task_problems(f"eval.tasks.{name}", task)
    if (config.judge.url is None) != (config.judge.model is None):
        yield "eval.judge: needs both eval.judge.url=… and eval.judge.model=…; set the other one, too"
    if config.judge.url is not None and not config.base:
        yield "eval.judge.url: compares with the base model's answers, so eval.base=false cannot be; leave one out"


def _task_problems(key: str, task: TaskConfig) -> Iterator[str]:
    needs = {TaskKind.hub: ("id", task.id), TaskKind.jsonl: ("path", task.path), TaskKind.pydocs: ("topic", task.topic)}
    name, value = needs[task.kind]
    if not value:
        fix = "eval.path=…, one file" if key == "eval.tasks.own" else f"{key}.{name}=…"
        yield f"{key}.{name} is required if {key}.kind={task.kind}; set {fix}"
    yield from filter(None, (metric_problem(f"{key}.metrics", metric) for metric in task.metrics))
    for name, values in (("metrics", task.metrics), ("references", task.references)):
        if not values:
            yield f"{key}.{name}: empty; name at least one"
    if not re.search(r"\{[^{}]+\}", task.prompt):
        yield f"{key}.prompt: has no field of the example, so all prompts would be the same; write e.g. '{{input}}'"
