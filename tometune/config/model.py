"""Schema of the `model` group: the weights, their precision and the backend."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from tometune.config.validators import NOT_IDENTITY, SINCE_DEFAULT, file_name, one_of

FOUR_BITS = ("-unsloth-bnb-4bit", "-bnb-4bit")
"""Suffixes of ids of 4-bit copies; without the suffix the id is that of the model in 16 bits."""

ATTENTION = ("sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention")
"""Attention kernels of transformers."""


class Backend(StrEnum):
    """Library that trains the model."""

    auto = "auto"
    transformers = "transformers"
    unsloth = "unsloth"


class Quantization(StrEnum):
    """Storage of the frozen base weights during training."""

    none = "none"
    nf4 = "nf4"


class Precision(StrEnum):
    """Number format of the unquantised weights and of the arithmetic; trained weights are float32."""

    auto = "auto"
    bf16 = "bf16"
    fp16 = "fp16"
    fp32 = "fp32"


class Weights(StrEnum):
    """Origin of the weights."""

    pretrained = "pretrained"
    random = "random"


@dataclass
class ModelConfig:
    """A causal language model with a chat template."""

    name: str = field(default="llama32_3b", metadata=NOT_IDENTITY)
    """Short name in the run id and the tables; follows `model.id` when only that is overridden."""
    id: str = field(default="unsloth/Llama-3.2-3B-Instruct-bnb-4bit", metadata=NOT_IDENTITY)
    """Hub id, or a local folder that `from_pretrained` can read."""
    revision: str = field(default="main", metadata=NOT_IDENTITY)
    """Branch, tag or commit of the hub repository; the resolved commit is recorded in run.json."""
    backend: Backend = Backend.auto
    """Library that trains: `auto` is Unsloth on one NVIDIA GPU if it is installed, else transformers. Scoring always
    uses transformers."""
    quantization: Quantization = Quantization.nf4
    """`nf4` is QLoRA's 4-bit type (needs an NVIDIA GPU and bitsandbytes); `none` keeps `precision`."""
    precision: Precision = Precision.auto
    """`auto`: bf16 where the device computes in it natively, else fp16 on a GPU and fp32 on a CPU."""
    attn_implementation: str = "sdpa"
    """Attention kernel by transformers' name: `sdpa`, `eager`, `flash_attention_2`."""
    weights: Weights = Weights.pretrained
    """`random` builds a tiny Llama with random weights, for tests of the machinery."""
    date_string: str = "26 Jul 2024"
    """Date in chat templates that print one, pinned so that tokens do not change from day to day."""
    thinking: bool = field(default=False, metadata=SINCE_DEFAULT)
    """Whether the model reasons before it answers: reasoning in the data is trained on, and prompts leave room for it.
    Otherwise reasoning is removed where the template has a place for it, and prompts skip that place."""


def model_problems(model: ModelConfig) -> Iterator[str]:
    """Yield the problems of the `model` group."""
    yield from file_name("model.name", model.name)
    if not model.id:
        yield "model.id: empty; give a hub id or a local folder"
    yield from one_of("model.attn_implementation", model.attn_implementation, ATTENTION)
    if model.weights is Weights.random and model.quantization is not Quantization.none:
        yield (
            f"model.quantization={model.quantization}: model.weights=random has nothing to quantise; "
            "set model.quantization=none or choose model=tiny"
        )
