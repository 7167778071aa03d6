"""Loads what was found: each base once, whatever adapters are asked for on it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tometune.chatting.engine import Engine, Settings
from tometune.chatting.published import fetch
from tometune.chatting.sides import Side
from tometune.common.errors import UserError
from tometune.common.imports import quick_imports
from tometune.config.model import ModelConfig

if TYPE_CHECKING:
    from tometune.chatting.transformers_engine import Weights

Tell = Callable[[str], None]
"""Takes what is begun, in a few words."""

HELLO = [{"role": "user", "content": "Hello"}]


def stages(sides: Sequence[Side]) -> int:
    """Return how often `load_engines` tells something."""
    bases = {repr(side.model) for side in sides if side.model is not None}
    return 2 * len(bases) + sum(side.adapter is not None or side.gguf is not None for side in sides) + 2


def load_engines(sides: Sequence[Side], cache: Path, context: int, tell: Tell) -> list[Engine]:
    """Return an engine a side, in their order.

    Raises:
        UserError: the machine, the hub or the files do not allow it.
    """
    tell("importing PyTorch and transformers")
    bases: dict[str, Weights] = {}
    engines: list[Engine] = []
    if any(side.model is not None for side in sides):
        with quick_imports():
            from tometune.chatting.transformers_engine import TransformersEngine
    for number, side in enumerate(sides):
        if side.gguf is not None:
            tell(f"reading {side.gguf.name}")
            from tometune.chatting.llama_engine import LlamaEngine

            engines.append(LlamaEngine(side.gguf, context))
            continue
        assert side.model is not None
        key = repr(side.model)
        if key not in bases:
            bases[key] = _base(side.model, cache, tell)
        adapter = None
        if side.adapter is not None:
            adapter = f"side{number}"
            tell(f"adding the adapter of {side.label}")
            if side.published is not None and not Path(side.published.id).expanduser().is_dir():
                fetch(side.adapter, side.published.id, side.published.revision)
            add_adapter(bases[key], side.adapter, adapter)
        engines.append(TransformersEngine(bases[key], adapter, context))
    tell("warming up")
    for engine in engines:  # the first pass makes kernels ready
        list(engine.stream(HELLO, Settings(temperature=0, max_new_tokens=2), lambda: False))
    return engines


def _base(model: ModelConfig, cache: Path, tell: Tell) -> "Weights":
    """Load a base and its tokenizer."""
    from tometune.chatting.transformers_engine import Weights
    from tometune.models.load import check_machine, load_model
    from tometune.models.source import check_source, locate
    from tometune.models.tokenizer import load_tokenizer

    check_machine(model)
    check_source(model)
    tell(f"reading the tokenizer of {model.name}")
    tokenizer = load_tokenizer(locate(model, cache, weights=False))
    tell(f"loading the weights of {model.name} (downloading or converting them the first time)")
    return Weights(load_model(locate(model, cache)), tokenizer)


def add_adapter(weights: "Weights", folder: Path, name: str) -> None:
    """Put an adapter on a base, beside those it has.

    Raises:
        UserError: it was made for another base, or is a pickle.
    """
    from peft import PeftModel

    from tometune.models.adapter import check_safetensors, load_adapter
    from tometune.models.lora_rounding import round_once

    check_safetensors(folder)
    try:
        if isinstance(weights.model, PeftModel):
            weights.model.load_adapter(folder, adapter_name=name, is_trainable=False)
            round_once(weights.model)  # layers that no adapter before it had
        else:
            weights.model = load_adapter(weights.model, folder, name)
    except (RuntimeError, ValueError) as error:
        if "size mismatch" in str(error) or "arget modules" in str(error):
            raise UserError(f"{folder}: the adapter was made for another base model than this one") from error
        raise
    weights.model.eval()
