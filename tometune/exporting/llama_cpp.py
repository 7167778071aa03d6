"""A process that runs llama.cpp on one GGUF file: quantises it, or computes logits, or asks its server. No torch.

It is a process of its own because llama.cpp aborts the process on fatal errors.
Usage: python -m tometune.exporting.llama_cpp FUNCTION REQUEST.json RESULT
"""

import json
import os
import secrets
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
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


def quantise(model: str, file: str, quant: str) -> None:
    """Write the GGUF `model` to `file` with weights of type `quant`."""
    from cyllama.llama import llama_cpp as cpp

    cpp.disable_logging()
    params = cpp.LlamaModelQuantizeParams()
    params.ftype, params.nthread = FILE_TYPES[quant], THREADS
    cpp.model_quantize(model, file, params)


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


@contextmanager
def server(model: str, longest: int) -> Iterator[Callable[..., Any]]:
    """Start llama.cpp's server on localhost for prompts and answers of `longest` tokens; yield a function that posts.

    The server requires a key, because any other process or web page on this machine could reach its port.
    """
    import httpx
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = model
    params.n_parallel, params.n_ctx = SLOTS, SLOTS * (longest + 16)
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = THREADS
    params.api_keys = [key := secrets.token_urlsafe(32)]
    params.warmup = False
    running = xllamacpp.Server(params)  # stops when the object is deleted
    known = {"Authorization": f"Bearer {key}"}
    with httpx.Client(
        base_url=running.listening_address, headers=known, timeout=ANSWER_SECONDS, trust_env=False
    ) as client:
        yield lambda route, **body: client.post(route, json=body).raise_for_status().json()


def render(model: str, conversations: Sequence[Any]) -> list[list[int]]:
    """Return the tokens of conversations, by the file's own chat template and tokenizer."""
    with server(model, 1024) as post:
        texts = [post("/apply-template", messages=messages)["prompt"] for messages in conversations]
        return [post("/tokenize", content=text, add_special=True, parse_special=True)["tokens"] for text in texts]


def answer(model: str, prompts: Sequence[dict[str, Any]]) -> list[str]:
    """Return greedy answers of up to `new` tokens to the tokens `ids` of each prompt."""
    greedy = {"temperature": 0.0, "top_k": 1, "repeat_penalty": 1.0, "cache_prompt": False}
    longest = max(len(prompt["ids"]) + prompt["new"] for prompt in prompts)
    with server(model, longest) as post, ThreadPoolExecutor(SLOTS) as pool:
        answers = pool.map(lambda one: post("/completion", prompt=one["ids"], n_predict=one["new"], **greedy), prompts)
        return [found["content"].strip() for found in answers]


def main(function: str, request: str, result: str) -> None:
    """Call a function of this module with the arguments in a JSON file, and write what it returns."""
    functions = {each.__name__: each for each in (quantise, log_probabilities, render, answer)}
    returned = functions[function](**json.loads(Path(request).read_text(encoding="utf-8")))
    if isinstance(returned, np.ndarray):
        with Path(result).open("wb") as file:
            np.save(file, returned)
    else:
        Path(result).write_text(json.dumps(returned), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
