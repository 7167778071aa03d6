import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tometune.common.errors import UserError
from tometune.config.model import ModelConfig, Precision, Quantization
from tometune.models.load import describe, load_model
from tometune.models.machine import check_machine
from tometune.models.source import check_source, fingerprint, locate

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")


def test_tiny_is_the_same_bits_on_every_build(tiny_config: ModelConfig, tmp_path: Path) -> None:
    one, two = (load_model(locate(tiny_config, tmp_path / name)).state_dict() for name in "ab")
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert sum(weight.numel() for weight in one.values()) > 10_000


def test_describe(tiny_config: ModelConfig, cache: Path) -> None:
    said = describe(tiny_config, load_model(locate(tiny_config, cache)))
    assert said["name"] == "tiny"
    assert said["backend"] == "transformers"
    assert said["quantization"] == "none"
    assert json.dumps(said)


@no_gpu
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, "need an NVIDIA GPU, none was found; on this machine: python -m tometune.train"),
        ({"quantization": Quantization.none}, "need an NVIDIA GPU"),  # the id's weights are stored in 4 bits
        ({"id": "x", "quantization": Quantization.none, "precision": Precision.fp16}, "model.precision=fp16"),
    ],
)
def test_what_the_machine_lacks_is_one_line(changes: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says) as error:
        check_machine(dataclasses.replace(ModelConfig(), **changes))  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_only_a_model_on_the_hub_needs_the_hub(
    tiny_config: ModelConfig, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", "http://127.0.0.1:9")
    load_model(locate(tiny_config, cache)).save_pretrained(tmp_path)
    check_source(tiny_config)
    check_source(ModelConfig(id=str(tmp_path)))
    with pytest.raises(UserError, match=r"^model\.id=someone/thing: the model hub cannot be reached"):
        check_source(ModelConfig(id="someone/thing"))


def test_a_folders_fingerprint_is_its_content(tiny_config: ModelConfig, cache: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        load_model(locate(tiny_config, cache)).save_pretrained(tmp_path / name)
    one = fingerprint(ModelConfig(id=str(tmp_path / "one")))
    assert one == fingerprint(ModelConfig(id=str(tmp_path / "two")))
    (tmp_path / "two" / "generation_config.json").write_text("{}")
    assert one != fingerprint(ModelConfig(id=str(tmp_path / "two")))
    large = tmp_path / "one" / "large.safetensors"
    large.write_bytes(bytes(33 * 2**20))
    zeros = fingerprint(ModelConfig(id=str(tmp_path / "one")))
    large.write_bytes(bytes(range(256)) * (33 * 2**12))
    assert fingerprint(ModelConfig(id=str(tmp_path / "one"))) != zeros
    with pytest.raises(UserError, match=r"no config\.json"):
        fingerprint(ModelConfig(id=str(tmp_path)))


def test_pickled_weights_are_refused(tiny_config: ModelConfig, cache: Path, tmp_path: Path) -> None:
    model = load_model(locate(tiny_config, cache))
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="holds no safetensors"):
        load_model(locate(ModelConfig(id=str(tmp_path), quantization=Quantization.none), cache))


def test_fingerprints_need_no_torch() -> None:
    code = (
        "import sys; from tometune.config.model import ModelConfig; from tometune.models.source import fingerprint; "
        "fingerprint(ModelConfig(revision='c' * 40)); sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
