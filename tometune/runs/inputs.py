"""Everything that a run is made from, resolved once: model source, tokenizer, tasks, mix and tokens."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from tometune.common.distributed import first_alone
from tometune.common.errors import UserError
from tometune.common.process import quick_imports
from tometune.config.data import Contamination, PoolOrder, SourceConfig, ranking
from tometune.config.eval import EvalConfig, TaskKind
from tometune.config.model import ModelConfig
from tometune.config.root import Config

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tometune.data.contamination import EvaluationTexts, MixOverlaps
    from tometune.data.draw import Scorer
    from tometune.data.mix import Mix
    from tometune.data.tokens import Tokens
    from tometune.evaluation.tasks import Task
    from tometune.models.source import ModelSource


ADDED = "_plus_"  # in the name of a mix, before the number of rows that are added to a file


@dataclass(frozen=True)
class RunInputs:
    """The inputs of one run. Fingerprints are computed at once; everything else is made when it is first used."""

    config: Config
    cache: Path  # see `cache_folder`
    fingerprints: dict[str, str]  # content of each input, e.g. `{"model": …, "data.base": …, "eval.tasks.qa": …}`

    @classmethod
    def resolve(cls, config: Config) -> RunInputs:
        """Identify the inputs of a run, see `fingerprints`."""
        return cls(config, cache_folder(config), fingerprints(config))

    def load(self) -> None:
        """Make the tasks, the mix and its tokens now; under torchrun, the first process does it alone."""
        with quick_imports(), first_alone():
            _ = self.model_source, self.tasks, self.tokens  # each is made when it is first read

    @cached_property
    def model_source(self) -> ModelSource:
        """Where the model is loaded from. A converted SmolLM2 or a random model is made first."""
        from tometune.models.source import locate

        return locate(self.config.model, self.cache)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer, with its chat template; can be loaded without the weights."""
        from tometune.models.source import locate
        from tometune.models.tokenizer import load_tokenizer

        loaded: ModelSource | None = self.__dict__.get("model_source")
        return load_tokenizer(loaded or locate(self.config.model, self.cache, weights=False))

    @cached_property
    def tasks(self) -> list[Task]:
        """The tasks with their examples, and those over held-out rows."""
        from tometune.evaluation.tasks import held_out_tasks, load_tasks

        tasks, held_out = load_tasks(self.config.eval), self.config.data.held_out.rows != 0
        return tasks + (held_out_tasks(self.mix.held_out, self.config.eval) if held_out else [])

    @cached_property
    def mix(self) -> Mix:
        """The conversations to be trained on, in the order of their row ids.

        Raises:
            UserError: see `build_mix`; or `data.contamination=fail` and a row overlaps with an evaluation example.
        """
        from tometune.data.contamination import of_mix
        from tometune.data.mix import build_mix
        from tometune.models.pool_scorers import quality_scorer

        data = self.config.data
        texts = None if data.contamination is Contamination.report else self.evaluation_texts[0]
        scorer: Scorer | None = quality_scorer(data.scorer)
        if ranking(data) == PoolOrder.ifd:
            from tometune.evaluation.ifd import IfdScorer

            scorer = IfdScorer(self.model_source, self.tokenizer)
        mix = build_mix(data, self.config.seeds.data, self.cache, lambda: self.tokenizer, texts, scorer)
        if texts is not None and data.contamination is Contamination.fail:
            found = of_mix(mix.rows, texts, self.cache)
            if found.overlapping:
                first, touched = found.shown[0], found.touched.items()
                examples = ", ".join(f"{count:,} examples of {task}" for task, count in touched)
                shared = " ".join(first["shared"].split()[:13])
                raise UserError(
                    f"data.contamination=fail: {found.overlapping:,} of {found.rows:,} rows share a 13-word sequence "
                    f"with {examples}, e.g. {first['source']} with {first['example']}: {shared!r}; "
                    "data.contamination=drop drops them"
                )
        return mix

    @cached_property
    def tokens(self) -> Tokens:
        """The mix as token ids and labels."""
        from tometune.data.tokens import tokenise

        return tokenise(self.mix, self.tokenizer, self.config.trainer.max_length, self.cache)

    @cached_property
    def evaluation_texts(self) -> tuple[EvaluationTexts | None, dict[str, str]]:
        """The texts of the tasks, None if there are none; and the reasons by task for tasks that could not be read.

        Raises:
            UserError: a local task is missing or broken, or any task unless `data.contamination=report`.
        """
        from tometune.data.contamination import EvaluationTexts
        from tometune.evaluation.tasks import texts_of_task

        texts, unread = [], {}
        for name, task in self.config.eval.tasks.items():
            try:
                texts += texts_of_task(name, task)
            except UserError as error:
                if task.kind is not TaskKind.hub or self.config.data.contamination is not Contamination.report:
                    raise
                unread[name] = str(error)
        return (EvaluationTexts(texts) if texts else None), unread

    def contamination(self) -> tuple[MixOverlaps | None, dict[str, str]]:
        """Return the overlaps of the mix with the evaluation texts, and the tasks that could not be read, with why."""
        from tometune.data.contamination import of_mix

        texts, unread = self.evaluation_texts
        return (None if texts is None else of_mix(self.mix.rows, texts, self.cache)), unread


def file_mix(added: int | None, _root_: DictConfig) -> str:
    """Return the name of a mix over one's own file: the file's, how many rows it has, and how many are added.

    `mine_4k` or `mine_4k_plus_10k`. A file that cannot be read leaves its size out; whoever reads it reports that.
    """
    base = OmegaConf.to_object(OmegaConf.merge(SourceConfig, OmegaConf.to_container(_root_.data.base, resolve=True)))
    assert isinstance(base, SourceConfig)
    parts = [file_stem(base.path)]
    with suppress(UserError):
        if base.path:
            from tometune.data.standardise import standardise

            rows = len(standardise(base, "data.base", Path(_root_.paths.cache).expanduser().resolve()).rows)
            parts.append(_short(min(rows, _root_.data.rows or rows)))
    return "_".join(parts) + (f"{ADDED}{_short(added)}" if added else "")


def file_stem(path: str | None) -> str:
    """Return the name of a file without endings, as a part of other names; a glob and no path give `mine`."""
    name = Path(path or "").name.partition(".")[0]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:30].strip("-._") or "mine"


def _short(rows: int) -> str:
    """Return a number of rows with two digits: `950`, `4k`, `4.2k`, `1.2m`."""
    for size, unit in ((1_000_000, "m"), (1_000, "k")):
        if rows >= size:
            return f"{rows / size:.{1 if rows < 10 * size else 0}f}".removesuffix(".0") + unit
    return str(rows)


def cache_folder(config: Config) -> Path:
    """Return the folder of converted models, standardised data and tokens, as an absolute path."""
    return Path(config.paths.cache).expanduser().resolve()


def fingerprints(config: Config) -> dict[str, str]:
    """Return an identifier of the content of each input (a hash or commit), by its key in the config.

    Imports no torch and loads nothing; the hub is asked for commits only.

    Raises:
        UserError: a file or folder is missing, or the hub does not have an input.
    """
    from tometune.data import sources

    found = {"data.base": sources.fingerprint(config.data.base, "data.base")}
    if config.data.pool is not None:
        found["data.pool"] = sources.fingerprint(config.data.pool, "data.pool")
        if config.data.pool.order is PoolOrder.best:
            from tometune.models.pool_scorers import scorer_fingerprint

            found["data.scorer"] = scorer_fingerprint(config.data.scorer)
        elif config.data.pool.order is PoolOrder.ifd:
            from tometune.data.draw import IFD_VERSION

            found["data.scorer"] = f"ifd-{IFD_VERSION}"
    return found | evaluation_fingerprints(config.model, config.eval)


def evaluation_fingerprints(model: ModelConfig, evaluation: EvalConfig) -> dict[str, str]:
    """Return what identifies a model and the tasks that it is scored on; raises like `fingerprints`."""
    from tometune.evaluation import harness, metrics, tasks
    from tometune.models import source

    found = {"model": source.fingerprint(model)}
    for name, task in evaluation.tasks.items():
        found[f"eval.tasks.{name}"] = tasks.fingerprint(task, f"eval.tasks.{name}")
    found |= {f"eval.metrics.{name}": metrics.identity_of(name) for name in evaluation.metrics}
    named = {name: harness.fingerprint(name) for name in evaluation.harness}
    own = {name: digest if name.endswith(".yaml") else name for name, digest in named.items()}  # not by their path
    return found | {f"eval.harness.{own[name]}": digest for name, digest in named.items()}


# At import, like those in `config`: all verbs compose the config of a mix.
OmegaConf.register_new_resolver("file_mix", file_mix, replace=True)
OmegaConf.register_new_resolver("file_stem", file_stem, replace=True)
