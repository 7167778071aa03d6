"""The backend `unsloth`: the same weights and adapter with Unsloth's kernels, in a process of its own.

Importing Unsloth changes transformers, TRL, PEFT and PyTorch in the whole process, so `prepare` comes before all of
them, and only the process that trains calls it (`tometune.training.unsloth_process`). See https://docs.unsloth.ai.
"""

import inspect
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from tometune.common.errors import UserError
from tometune.config.model import LoraConfig
from tometune.models.machine import INSTALL_UNSLOTH
from tometune.models.source import ModelSource, quantized

log = logging.getLogger(__name__)


def prepare(cache: Path) -> None:
    """Import Unsloth, with its telemetry off and its compiled code in the cache, before libraries that use torch.

    Raises:
        UserError: a package that it needs is missing or has the wrong version.
    """
    os.environ["UNSLOTH_DISABLE_STATISTICS"] = "1"
    os.environ["UNSLOTH_AUTO_INSTALL"] = "0"
    os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", str(cache / "unsloth_compiled"))
    _add_enable_gqa()

    def is_relevant(record: logging.LogRecord) -> bool:
        greeting = record.getMessage().lstrip("=(/)_ ").startswith("Unsloth")
        return record.levelno >= logging.ERROR or not greeting

    for name in ("unsloth", "unsloth_zoo.log", "transformers.trainer"):
        logging.getLogger(name).addFilter(is_relevant)
    # Of the pass that measures memory.
    warnings.filterwarnings("ignore", message="Unsloth: detected a manual forward/backward run")
    with quiet():
        try:
            import unsloth  # noqa: F401
        except (ImportError, AttributeError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"model.backend=unsloth: cannot be imported ({reason}); run: {INSTALL_UNSLOTH}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Hide Unsloth's banners and advice while the body runs."""
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        yield


def _add_enable_gqa() -> None:
    """Add to PyTorch 2.11's `varlen_attn` the argument by which Unsloth recognises kernels that share keys among heads.

    The kernel of 2.11 does it anyway; 2.12 added `enable_gqa` to the Python function. Without it Unsloth runs each
    conversation of a pack separately: 13,400 instead of 32,100 tokens/s (docs/LOG.md).
    """
    try:
        from torch.nn.attention import varlen
    except ImportError:
        return
    theirs = varlen.varlen_attn
    given = inspect.signature(theirs).parameters
    if "window_size" not in given or "enable_gqa" in given:
        return

    def varlen_attn(*parts: Any, window_size: Any = (-1, -1), enable_gqa: bool = False, **options: Any) -> Any:  # noqa: ARG001
        """Call PyTorch's own function, whose kernel sees from the shapes that heads share keys."""
        return theirs(*parts, window_size=window_size, **options)

    varlen.varlen_attn = varlen_attn


def load(source: ModelSource, max_length: int, full: bool = False) -> Any:
    """Load a causal language model with Unsloth's kernels.

    RoPE is scaled if the model's own context is shorter than `max_length`. With `full` every weight is trained, in
    float32; `model.precision` is that of the arithmetic.

    Raises:
        UserError: the hub does not have it, or `full` and it is quantised.
    """
    import torch
    from unsloth import FastLanguageModel

    from tometune.common.hub import hub_errors
    from tometune.models.load import check_unquantised, compute_dtype

    model = source.config
    dtype, gpu = compute_dtype(model.precision), torch.cuda.is_available()
    options: dict[str, Any] = {"device_map": {"": torch.cuda.current_device()}} if gpu else {}
    if full and gpu:
        options |= {"full_finetuning": True, "float32_mixed_precision": True}
    elif full:  # Unsloth's CPU backend trains in the given dtype, under the trainer's autocast
        dtype, options = torch.float32, {"full_finetuning": True}
    with hub_errors("model.id", model.id), quiet():
        loaded, _ = FastLanguageModel.from_pretrained(
            source.location,
            revision=source.revision,
            max_seq_length=max_length,
            dtype=dtype,
            load_in_4bit=quantized(model),
            use_gradient_checkpointing=False,
            use_exact_model_name=True,
            trust_remote_code=False,
            **options,
        )
    if full:
        check_unquantised(loaded, model.id)
    return loaded


def add_adapter(model: Any, lora: LoraConfig, seed: int) -> Any:
    """Return the model with the same fresh adapter that PEFT makes from this seed.

    Raises:
        UserError: a name in `lora.target_modules` matches no linear layer.
    """
    import torch
    from unsloth import FastLanguageModel

    from tometune.models.load import check_targets, peft_settings

    check_targets(model, lora.target_modules)
    with quiet():
        made = FastLanguageModel.get_peft_model(
            model, **peft_settings(lora), use_gradient_checkpointing=False, random_state=seed
        )
    if not getattr(model, "is_loaded_in_4bit", False) and model.dtype is not torch.float32:
        _sum_as_transformers(made)
    return made


def _sum_as_transformers(model: Any) -> None:
    """Make the LoRA layers of a model in 16 bits round once, as in the other backend, without Unsloth's fused kernels.

    The kernels add the adapter's output to a rounded product, so its smallest changes are lost (docs/footguns.md).
    Unsloth itself disables them under FSDP; on a CPU there are none.
    """
    from tometune.models.lora_rounding import round_once

    kernels = sys.modules.get("unsloth.models.llama")  # on a CPU it is not imported
    decline = getattr(kernels, "_decline_fused_lora_for_fsdp", None)
    if kernels and (not decline or os.environ.get("UNSLOTH_FORCE_FUSED_LORA") == "1"):
        log.warning(
            "model.backend=unsloth: in 16 bits its fused kernels remain, which round away the smallest changes of an "
            "adapter; model.backend=transformers keeps them (docs/footguns.md)"
        )
        return
    if decline:
        decline(model, reason="they round small changes away")
    round_once(model)
