"""How the trained model behaves, on the bases that exports are made from; each is loaded once, when it is needed."""

import logging
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, GenerationConfig, PreTrainedTokenizerBase

from tometune.common.errors import UserError
from tometune.common.hub import hub_errors
from tometune.config.model import ModelConfig, Precision
from tometune.exporting.asked import parameters_of
from tometune.exporting.merged import check_shape, load_base
from tometune.exporting.reference import Reference, beside_base, make_reference
from tometune.exporting.together import generation_config
from tometune.models.adapter import load_adapter
from tometune.models.load import check_machine, free_memory, load_model
from tometune.models.source import locate, quantized
from tometune.runs.finished import Finished

log = logging.getLogger(__name__)

MOST_IN_FLOAT32 = 4_000_000_000
"""Weights of the largest model whose logits are compared in float32, free of the noise of 16-bit arithmetic."""


class References:
    """What the exports of one run are held against.

    Attributes:
        stops: the base's generation config, known once a base was asked.
        compute: type and device it was asked on.
    """

    def __init__(self, finished: Finished, cache: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        """Take the run, the cache of models, and the run's tokenizer."""
        self.finished, self.cache, self.tokenizer = finished, cache, tokenizer
        self.limits = finished.config.export
        self.exact = parameters_of(finished) <= MOST_IN_FLOAT32
        self.stops = GenerationConfig()
        self.compute: tuple[torch.dtype, torch.device] = (torch.float32, torch.device("cpu"))

    def of(self, kind: str) -> Reference:
        """Return what an export is held against: the adapter as trained, or on the 16-bit base it is merged into.

        A base in 4 bits answers otherwise than the same in 16, whatever is merged; how much is in the reference.
        """
        if not quantized(self.finished.model):
            return self.as_trained or self.on_base
        return self.as_trained or self.on_base if kind == "adapter" else self.on_base

    @cached_property
    def as_trained(self) -> Reference | None:
        """The adapter on its base as trained; None where that is in 4 bits and this machine cannot hold it."""
        try:
            check_machine(self.finished.model)
        except UserError:
            if not quantized(self.finished.model):
                raise
            log.warning("no GPU for the 4-bit base: exports are held against the adapter on the 16-bit one")
            return None
        return self._ask(self.finished.model, "as trained", None)

    @cached_property
    def on_base(self) -> Reference:
        """The adapter on the base in 16 bits, and how far that is from the adapter as trained."""
        return self._ask(self.finished.base, "16-bit base", self.as_trained)

    def _ask(self, model: ModelConfig, held: str, trained: Reference | None) -> Reference:
        """Load a base with the adapter on it, or the whole model, and ask it everything."""
        if model.id != self.finished.model.id:
            check_shape(self.config_of(model), self.config_of(self.finished.model), self.finished)
        if self.finished.whole is not None:
            return self._ask_whole(self.finished.whole, model, held)
        log.info("asking the adapter on %s", model.id)
        named = held != "as trained" and self.limits.base is not None
        base = load_base(self.held(model), self.cache, named)
        tuned = load_adapter(base, self.finished.adapter)
        self.stops = generation_config(base, self.tokenizer)
        self.compute = (base.dtype, base.device)
        try:
            return make_reference(self.finished, self.tokenizer, tuned, held, self.limits.examples, trained)
        finally:
            del base, tuned
            free_memory()

    def _ask_whole(self, whole: ModelConfig, before: ModelConfig, held: str) -> Reference:
        """Ask the whole model, and then what it was before, one after the other: memory holds one of them."""
        log.info("asking the run's model, and %s", before.id)
        tuned = load_model(locate(self.held(whole), self.cache))
        self.stops = generation_config(tuned, self.tokenizer)
        self.compute = (tuned.dtype, tuned.device)
        reference = make_reference(self.finished, self.tokenizer, tuned, held, self.limits.examples)
        del tuned
        free_memory()
        base = load_base(self.held(before), self.cache, named=False)
        try:
            return beside_base(reference, base)
        finally:
            del base
            free_memory()

    def held(self, model: ModelConfig) -> ModelConfig:
        """Return the model in float32 if it is small enough."""
        return replace(model, precision=Precision.fp32) if self.exact else model

    def config_of(self, model: ModelConfig) -> Any:
        """Return the config of a base, without its weights."""
        source = locate(model, self.cache)
        with hub_errors("export.base" if model is self.finished.base else "model.id", model.id):
            return AutoConfig.from_pretrained(source.location, revision=source.revision)
