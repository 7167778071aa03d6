"""A process that runs llama.cpp on one GGUF file: quantises it, or computes logits, or asks its server. No torch.

It is a process of its own because llama.cpp aborts the process on fatal errors.
Usage: python -m tometune.exporting.llama_cpp REQUEST.json
"""

import json
import os
import secrets
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

FILE_TYPES = {"f16": 1, "q8_0": 7, "q3_k_m": 12, "q4_k_m": 15, "q5_k_m": 17, "q6_k": 18, "bf16": 32}
"""llama.cpp's `llama_ftype` by name (llama.h)."""

SLOTS = 8
"""Prompts that the server answers at once."""

ANSWER_SECONDS = 3600.0
"""Longest wait for an answer; a large model on a slow machine needs long."""

THREADS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def quantise(source: str, file: str, quant: str) -> None:
    """Write the GGUF `source` to `file` with weights of type `quant`."""
    from cyllama.llama import llama_cpp as cpp

    cpp.disable_logging()
    params = cpp.LlamaModelQuantizeParams()
    params.ftype, params.nthread = FILE_TYPES[quant], THREADS
    cpp.model_quantize(source, file, params)


def log_probabilities(model: str, rows: Sequence[dict[str, list[int]]]) -> np.ndarray:
    """Return float32 [answer tokens of all rows, vocabulary]; a row has the tokens of `prompt` and `answer`."""
    from cyllama.llama import llama_cpp as cpp

    class Model(cpp.LlamaModel):  # type: ignore[misc]
        """Adds the vocabulary's size, which cyllama 0.2.18 lacks and needs to return logits."""

        @property
        def n_vocab(self) -> int:
            return int(self.get_vocab().n_vocab)

    cpp.disable_logging()
    model_params = cpp.LlamaModelParams()
    model_params.n_gpu_layers = 0
    loaded = Model(model, model_params)
    params = cpp.LlamaContextParams()
    params.n_ctx = params.n_batch = params.n_ubatch = max(len(row["prompt"]) + len(row["answer"]) for row in rows)
    params.n_threads = params.n_threads_batch = THREADS
    found = []
    for row in rows:
        context = cpp.LlamaContext(loaded, params)  # a new one, so that its cache holds no other row
        tokens, first = [*row["prompt"], *row["answer"]], len(row["prompt"]) - 1
        batch = cpp.LlamaBatch(n_tokens=len(tokens), embd=0, n_seq_max=1)
        for place, token in enumerate(tokens):
            batch.add(token, place, [0], first <= place < len(tokens) - 1)
        context.decode(batch)
        logits = np.array([context.get_logits_ith(place) for place in range(first, len(tokens) - 1)], dtype=np.float64)
        found.append((logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)).astype(np.float32))
    return np.concatenate(found)


def ask_server(model: str, conversations: Sequence[Any], prompts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Start llama.cpp's server on localhost; return the tokens of `conversations` and greedy answers to `prompts`.

    The server requires a key, because any other process or web page on this machine could reach its port.
    """
    import httpx
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = model
    longest = max(len(prompt["ids"]) + prompt["new"] for prompt in prompts)
    params.n_parallel, params.n_ctx = SLOTS, SLOTS * (longest + 16)
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = THREADS
    params.api_keys = [key := secrets.token_urlsafe(32)]
    params.warmup = False
    server = xllamacpp.Server(params)  # stops when the object is deleted
    client = httpx.Client(
        base_url=server.listening_address,
        headers={"Authorization": f"Bearer {key}"},
        timeout=ANSWER_SECONDS,
        trust_env=False,
    )

    def post(route: str, **body: Any) -> Any:
        return client.post(route, json=body).raise_for_status().json()

    def rendered(messages: Any) -> Any:
        text = post("/apply-template", messages=messages)["prompt"]
        return post("/tokenize", content=text, add_special=True, parse_special=True)["tokens"]

    def answered(prompt: dict[str, Any]) -> str:
        greedy = {"temperature": 0.0, "top_k": 1, "repeat_penalty": 1.0, "cache_prompt": False}
        text: str = post("/completion", prompt=prompt["ids"], n_predict=prompt["new"], **greedy)["content"]
        return text.strip()

    with client, ThreadPoolExecutor(SLOTS) as pool:
        return {"rendered": list(map(rendered, conversations)), "answers": list(pool.map(answered, prompts))}


def main(request: dict[str, Any]) -> None:
    """Carry out one request; `result` is the file that is written."""
    task, result = request.pop("task"), request.pop("result")
    if task == "quantise":
        quantise(file=result, **request)
    elif task == "log_probabilities":
        np.save(result, log_probabilities(**request))
    else:
        Path(result).write_text(json.dumps(ask_server(**request)), encoding="utf-8")


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
