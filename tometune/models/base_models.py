"""The base model that the runs of one process share: it is loaded for the first of them and kept without its adapter.

A run must not depend on those before it. So a model is kept only if everything is as it was when it was loaded.
"""

import copy
import logging
from dataclasses import dataclass, field, fields
from hashlib import sha256
from typing import Any

import peft
import torch
from torch import nn

from tometune.models.load import load_model
from tometune.models.machine import free_memory
from tometune.models.source import ModelSource

log = logging.getLogger(__name__)

SMALL_SHARE = 0.04
"""Share of the GPU's memory that a base model may keep while another process trains; half of what a training spares."""


TRL_LEAVES = ("forward", "model_tags")
"""Attributes that TRL's trainer sets on the base model itself; the first one computes its loss."""


class BaseModels:
    """Keeps the base model of this process's last run for the next one, which then does not load it again."""

    def __init__(self) -> None:
        self._kept: tuple[ModelSource, Any] | None = None

    def load(self, source: ModelSource) -> Any:
        """Return the base model, in evaluation mode: the kept one, if it is that of the source."""
        kept, self._kept = self._kept, None
        if kept is not None and kept[0] == source:
            log.info("model.id=%s: is loaded already", source.config.id)
            return kept[1]
        del kept
        free_memory()
        return load_model(source)

    def keep(self, model: Any, source: ModelSource, before: "State") -> None:
        """Keep a model without its adapter, unless anything has changed since its state was `before`."""
        self._kept = None
        base = (model.unload() if isinstance(model, peft.PeftModel) else model).eval()
        for name, parameter in base.named_parameters():
            parameter.requires_grad_(before.trainable.get(name, False))
        for name in TRL_LEAVES:
            vars(base).pop(name, None)
        base.config.use_cache, base.generation_config = before.use_cache, before.generation
        now = state_of(base)
        changed = [
            each.name for each in fields(State) if each.compare and vars(now)[each.name] != vars(before)[each.name]
        ]
        if changed:
            log.debug("model.id=%s: the run changed its %s; the next one loads it again", source.config.id, changed)
        else:
            self._kept = (source, base)

    def drop(self) -> None:
        """Free the memory of the kept model."""
        self._kept = None
        free_memory()


base_models = BaseModels()


@dataclass(frozen=True)
class State:
    """Everything by which a model that was used can differ from one that was just loaded."""

    trainable: dict[str, bool]  # by the name of a parameter
    use_cache: bool | None
    generation: Any = field(compare=False)  # a copy of the generation config
    modules: list[Any]  # with their attributes and hooks
    configs: list[Any]
    weights: str  # see `weights_digest`


def state_of(model: Any) -> State:
    """Return the state of a model."""
    modules = [
        (
            name,
            type(module).__qualname__,
            len(module._forward_hooks),
            len(module._forward_pre_hooks),
            sorted(vars(module)),
        )
        for name, module in model.named_modules()
    ]
    configs = [model.config.to_dict(), model.generation_config and model.generation_config.to_dict()]
    trainable = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    use_cache = getattr(model.config, "use_cache", None)
    generation = copy.deepcopy(model.generation_config)
    return State(trainable, use_cache, generation, modules, configs, weights_digest(model))


def weights_digest(model: nn.Module) -> str:
    """Return a sha256 over the name, shape, dtype and 256 evenly spaced numbers of every parameter.

    It is cheap (no full pass over the weights), and any training step changes it.
    """
    digest = sha256()
    for name, parameter in model.named_parameters():
        flat = parameter.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // 256)].to(device="cpu", dtype=torch.float32)
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode() + sample.numpy().tobytes())
    return digest.hexdigest()


def is_small(model: Any) -> bool:
    """Tell whether a model may stay in the GPU's memory while another process trains there."""
    total = torch.cuda.mem_get_info()[1] if torch.cuda.is_available() else 0
    return bool(model.get_memory_footprint() <= SMALL_SHARE * total)
