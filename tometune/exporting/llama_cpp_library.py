"""A process with llama.cpp's C interface in it: quantises a file, or gives log-probabilities. Imports no torch.

Usage: python -m tometune.exporting.llama_cpp_library REQUEST.json
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from cyllama.llama import llama_cpp as cpp

from tometune.exporting.cores import threads

FILE_TYPES = {"f16": 1, "q8_0": 7, "q3_k_m": 12, "q4_k_m": 15, "q5_k_m": 17, "q6_k": 18, "bf16": 32}
"""llama.cpp's `llama_ftype` by name (llama.h)."""


class Model(cpp.LlamaModel):  # type: ignore[misc]
    """A model that knows the size of its vocabulary, which reading logits asks for and cyllama 0.2.18 left out."""

    @property
    def n_vocab(self) -> int:
        """Size of the vocabulary."""
        return int(self.get_vocab().n_vocab)


def quantise(source: str, file: str, quant: str) -> None:
    """Write `source` to `file` with the weights of `quant`."""
    params = cpp.LlamaModelQuantizeParams()
    params.ftype, params.nthread = FILE_TYPES[quant], threads()
    cpp.model_quantize(source, file, params)


def log_probabilities(path: str, rows: list[dict[str, list[int]]]) -> np.ndarray:
    """Return float32 [answer tokens of all rows, vocabulary]: of each token of an answer's place."""
    model_params = cpp.LlamaModelParams()
    model_params.n_gpu_layers = 0
    model = Model(path, model_params)
    longest = max(len(row["prompt"]) + len(row["answer"]) for row in rows)
    params = cpp.LlamaContextParams()
    params.n_ctx = params.n_batch = params.n_ubatch = longest
    params.n_threads = params.n_threads_batch = threads()
    found = []
    for row in rows:
        context = cpp.LlamaContext(model, params)  # a new one, so that no row is left in the cache of the next
        tokens, first = [*row["prompt"], *row["answer"]], len(row["prompt"]) - 1
        batch = cpp.LlamaBatch(n_tokens=len(tokens), embd=0, n_seq_max=1)
        for place, token in enumerate(tokens):
            batch.add(token, place, [0], first <= place < len(tokens) - 1)
        context.decode(batch)
        logits = np.array([context.get_logits_ith(place) for place in range(first, len(tokens) - 1)], dtype=np.float64)
        found.append((logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)).astype(np.float32))
    return np.concatenate(found)


def main(request: dict[str, Any]) -> None:
    """Do what the request says."""
    cpp.disable_logging()
    if request["task"] == "quantise":
        quantise(request["source"], request["file"], request["quant"])
    else:
        np.save(request["file"], log_probabilities(request["model"], request["rows"]))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
