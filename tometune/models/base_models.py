"""The base model that the runs of a sweep share in one process: the first of them loads it, the others take it over.

It is kept without its adapter. A run must not depend on those before it. So a model is kept only if everything compared
in `State` is as it was when it was loaded, and it is loaded again if its files changed. Outside of a sweep nothing is
kept, because other work in the process needs the memory. Imports no torch.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from tometune.common.errors import one_line
from tometune.models.machine import free_memory
from tometune.models.source import ModelSource, fingerprint

if TYPE_CHECKING:
    from torch import Tensor, nn

log = logging.getLogger(__name__)

SMALL_SHARE = 0.04
"""Share of the GPU's memory that a base model may keep while another process trains; half of what a training spares."""

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class BaseModels:
    """Keeps the base model of this process's last run for the next run of the sweep, which then does not load it."""

    def __init__(self) -> None:
        self._shared = False
        self._loaded: tuple[Any, State] | None = None  # key and state of the model that was loaded last
        self._kept: tuple[Any, Any] | None = None  # key and model

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Share models between the runs that the body makes in this process; the last one is dropped at the end.

        A launcher's workers, which may wait for each other, load a model for each run.
        """
        self._shared = True
        try:
            yield
        finally:
            self._shared = False
            self.drop()

    def load(self, source: ModelSource) -> Any:
        """Return the base model, in evaluation mode: the kept one, if it is that of the source as it is now."""
        from tometune.models.load import load_model

        key = (source, fingerprint(source.config))
        kept, self._kept, self._loaded = self._kept, None, None
        if kept is not None and kept[0] == key:
            log.info("model.id=%s: is loaded already", source.config.id)
            model = kept[1]
        else:
            del kept
            free_memory()
            model = load_model(source)
        if self._shared:
            self._loaded = (key, state_of(model))
        return model

    def keep(self, model: Any) -> None:
        """Keep the model that was loaded last, without its adapter, if runs share models and it has not changed.

        The run is finished by now, so an error is only logged.
        """
        self._kept = None
        if self._loaded is None:
            return
        key, before = self._loaded
        try:
            base = without_adapter(model, before)
            now = state_of(base)
        except Exception as error:
            log.warning("the next run loads its model again (%s: %s)", type(error).__name__, one_line(error))
            return
        if changed := [
            each.name for each in fields(State) if each.compare and vars(now)[each.name] != vars(before)[each.name]
        ]:
            pairs = zip(before.modules, now.modules, strict=False)
            module = next((f" (first {new[0] or 'the model'})" for old, new in pairs if old != new), "")
            log.info("the run changed its base model, so a next run loads it again: %s%s", ", ".join(changed), module)
        else:
            self._kept = (key, base)

    def drop(self) -> None:
        """Free the memory of the kept model."""
        if self._kept is not None:
            self._kept = None
            free_memory()


base_models = BaseModels()


@dataclass(frozen=True)
class State:
    """What is compared between a model that was used and the same one after it was loaded.

    Not compared: numbers that the digests leave out, the values of attributes that are objects or containers, and which
    functions the hooks are. A run may change none of these.
    """

    trainable: dict[str, bool]  # by the name of a parameter
    use_cache: bool | None
    generation: Any = field(compare=False)  # a copy of the generation config
    modules: list[Any]  # with their attributes, the number of their hooks, and which attention they compute
    configs: list[Any]
    weights: str  # see `weights_digest`
    buffers: str  # e.g. the frequencies of RoPE, which some models change on a long input


def state_of(model: Any) -> State:
    """Return the state of a model."""
    return State(
        trainable={name: parameter.requires_grad for name, parameter in model.named_parameters()},
        use_cache=getattr(model.config, "use_cache", None),
        generation=copy.deepcopy(model.generation_config),
        modules=[(name, *_described(module)) for name, module in model.named_modules()],
        configs=[model.config.to_dict(), model.generation_config and model.generation_config.to_dict()],
        weights=weights_digest(model),
        buffers=_digest(model.named_buffers()),
    )


def _described(module: Any) -> tuple[Any, ...]:
    simple = (bool, int, float, str, type(None))
    attributes = {name: repr(value) if isinstance(value, simple) else "" for name, value in vars(module).items()}
    attention = getattr(getattr(module, "config", None), "_attn_implementation", None)  # `to_dict` leaves it out
    return type(module).__qualname__, attributes, [len(getattr(module, name)) for name in HOOKS], attention


def without_adapter(model: Any, before: State) -> Any:
    """Return the base model without the attributes and hooks that were not there `before`.

    TRL's trainer sets `forward`, which computes its loss; gradient checkpointing leaves functions and hooks.
    """
    import peft

    base = (model.unload() if isinstance(model, peft.PeftModel) else model).eval()
    for name, parameter in base.named_parameters():
        parameter.requires_grad_(before.trainable.get(name, False))
    if base.is_gradient_checkpointing:
        base.gradient_checkpointing_disable()
    modules = dict(base.named_modules())
    for name, _, attributes, hooks, _ in before.modules:
        for added in modules[name].__dict__.keys() - attributes.keys():
            del modules[name].__dict__[added]
        for kind, count in zip(HOOKS, hooks, strict=True):
            if not count:
                getattr(modules[name], kind).clear()
    base.config.use_cache, base.generation_config = before.use_cache, before.generation
    return base


def weights_digest(model: nn.Module) -> str:
    """Return a sha256 over the name, shape, dtype and 256 evenly spaced numbers of every parameter.

    It is cheap (no full pass over the weights), and any training step changes it.
    """
    return _digest(model.named_parameters())


def _digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    import torch

    digest = sha256()
    for name, tensor in tensors:
        flat = tensor.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // 256)].to(device="cpu", dtype=torch.float32)
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode() + sample.numpy().tobytes())
    return digest.hexdigest()


def is_small(model: Any) -> bool:
    """Tell whether a model may stay in the GPU's memory while another process trains there."""
    import torch

    total = torch.cuda.mem_get_info()[1] if torch.cuda.is_available() else 0
    return bool(model.get_memory_footprint() <= SMALL_SHARE * total)
