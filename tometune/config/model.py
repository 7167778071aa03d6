"""Schema of the `model` group (weights, precision, backend) and of the `lora` group (adapter or full fine-tuning)."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from tometune.config.validators import NOT_IDENTITY, SINCE_DEFAULT, at_least, checked, file_name, one_of, valid_if

FOUR_BITS = ("-unsloth-bnb-4bit", "-bnb-4bit")
"""Suffixes of ids of 4-bit copies; without the suffix the id is that of the model in 16 bits."""

ATTENTION = ("sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention")
"""Attention kernels of transformers."""

Backend = StrEnum("Backend", ["auto", "transformers", "unsloth"])
Quantization = StrEnum("Quantization", ["none", "nf4"])  # storage of the frozen base weights during training
Precision = StrEnum("Precision", ["auto", "bf16", "fp16", "fp32"])  # of other weights and the arithmetic
Compute = StrEnum("Compute", ["default", "fp8", "fp8_backward"])  # of products with frozen weights, in training
Weights = StrEnum("Weights", ["pretrained", "random"])


@dataclass
class ModelConfig:
    """A causal language model with a chat template."""

    name: str = field(default="llama32_3b", metadata=NOT_IDENTITY | checked(file_name))
    """Short name in the run id and the tables; follows `model.id` when only that is overridden."""
    id: str = field(default="unsloth/Llama-3.2-3B-Instruct-bnb-4bit", metadata=NOT_IDENTITY)
    """Hub id, or a local folder that `from_pretrained` can read."""
    revision: str = field(default="main", metadata=NOT_IDENTITY)
    """Branch, tag or commit of the hub repository; the resolved commit is recorded in run.json."""
    backend: Backend = Backend.auto
    """Library that trains: `auto` is Unsloth on one NVIDIA GPU if it is installed, but transformers on a Hopper GPU
    (H100, H200), where it is faster. Scoring always uses transformers."""
    quantization: Quantization = Quantization.nf4
    """`nf4` is QLoRA's 4-bit type (needs an NVIDIA GPU and bitsandbytes); `none` keeps `precision`."""
    precision: Precision = Precision.auto
    """`auto`: bf16 where the device computes in it natively, else fp16 on a GPU and fp32 on a CPU. Trained weights are
    float32."""
    compute: Compute = field(default=Compute.default, metadata=SINCE_DEFAULT)
    """Products of the layers that get an adapter, in training: `default` is that of `precision`; `fp8` is 8 bits with
    one scale per row (NVIDIA GPUs of compute capability 8.9 and above), `fp8_backward` the same in the backward pass
    only. Scoring always computes in `precision`."""
    attn_implementation: str = field(default="sdpa", metadata=checked(one_of(ATTENTION)))
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
    if not model.id:
        yield "model.id: empty; give a hub id or a local folder"
    if model.compute is not Compute.default and model.backend is Backend.unsloth:
        yield f"model.compute={model.compute}: Unsloth has no such products; set model.backend=transformers"
    if model.compute is not Compute.default and model.precision not in (Precision.auto, Precision.bf16):
        which = f"is for bfloat16, not model.precision={model.precision}"
        yield f"model.compute={model.compute}: {which}; set model.precision=auto"
    if model.weights is Weights.random and model.quantization is not Quantization.none:
        yield f"model.quantization={model.quantization}: model.weights=random has nothing to quantise; set it to none"


@dataclass
class LoraConfig:
    """Arguments of `peft.LoraConfig`, with the same names, and whether there is an adapter at all."""

    enabled: bool = field(default=True, metadata=SINCE_DEFAULT)
    """Whether an adapter is trained; false trains every weight and ignores the rest of this group."""
    r: int = field(default=16, metadata=at_least(1))
    """Rank of the update matrices."""
    lora_alpha: int = field(default=16, metadata=at_least(1))
    """The update is scaled by `lora_alpha / r` (by `lora_alpha / sqrt(r)` with `use_rslora`)."""
    lora_dropout: float = field(default=0.0, metadata=valid_if(lambda p: 0 <= p < 1, "not from 0 to below 1"))
    """Dropout on the adapter's input, 0 to 1."""
    target_modules: list[str] = field(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )
    """Names of the linear layers that get an adapter."""
    use_rslora: bool = False
    """Rank-stabilised scaling (Kalajdzievski 2023, arXiv:2312.03732)."""
    use_dora: bool = False
    """Weight-decomposed adapters (Liu et al. 2024, arXiv:2402.09353); slower."""


def lora_problems(lora: LoraConfig, model: ModelConfig) -> Iterator[str]:
    """Yield the problems of the `lora` group, and of training this model with it."""
    if not lora.target_modules:
        yield "lora.target_modules: empty; name the layers that get an adapter, e.g. [q_proj,v_proj]"
    stored = next((ending for ending in FOUR_BITS if model.id.endswith(ending)), "")
    if not lora.enabled and (stored or model.quantization is Quantization.nf4):  # which cannot hold small updates
        whole = f"model.id={model.id.removesuffix(stored)} (the weights in 16 bits) and " if stored else ""
        yield f"lora.enabled=false: weights in 4 bits cannot be trained; set {whole}model.quantization=none"
    reason = "lora.use_dora=true needs the weights' norms" if lora.use_dora else ""
    reason = reason if lora.enabled else "lora.enabled=false trains the weights"
    if model.compute is not Compute.default and reason:
        yield f"model.compute={model.compute}: is for frozen weights, and {reason}; set model.compute=default"
