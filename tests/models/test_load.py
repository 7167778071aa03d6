import json
import os
import pty
import select
import subprocess
import sys
import termios

import pytest
import torch

from tometune.common.errors import UserError
from tometune.config.model import ModelConfig, Quantization
from tometune.models.load import describe, load_model
from tometune.models.source import check_source, fingerprint, locate


def test_tiny_is_the_same_bits_on_every_build_and_is_described(tiny_config, tmp_path):
    models = [load_model(locate(tiny_config, tmp_path / name)) for name in "ab"]
    one, two = (model.state_dict() for model in models)
    assert all(torch.equal(one[key], two[key]) for key in one)
    said = describe(tiny_config, models[0])
    assert (said["name"], said["backend"], said["quantization"]) == ("tiny", "transformers", "none")
    assert json.dumps(said)


def test_loading_has_a_bar_on_a_terminal_only(tiny_config, cache, monkeypatch, capfd):
    source = locate(tiny_config, cache)
    load_model(source)
    assert "Loading weights" not in capfd.readouterr().err
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    with os.fdopen(theirs, "w") as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        load_model(source)
        shown = b""
        while b"Loading weights: 100%" not in shown:
            assert select.select([ours], [], [], 5)[0], shown
            shown += os.read(ours, 65536)
    load_model(source)
    assert "Loading weights" not in capfd.readouterr().err


def test_only_a_model_on_the_hub_needs_the_hub(tiny_config, cache, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", "http://127.0.0.1:9")
    load_model(locate(tiny_config, cache)).save_pretrained(tmp_path)
    check_source(tiny_config)
    check_source(ModelConfig(id=str(tmp_path)))
    with pytest.raises(UserError, match=r"^model\.id=someone/thing: the model hub cannot be reached"):
        check_source(ModelConfig(id="someone/thing"))


def test_a_folders_fingerprint_is_its_content(tiny_config, cache, tmp_path):
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


def test_pickled_weights_are_refused(tiny_config, cache, tmp_path):
    model = load_model(locate(tiny_config, cache))
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="holds no safetensors"):
        load_model(locate(ModelConfig(id=str(tmp_path), quantization=Quantization.none), cache))


def test_fingerprints_need_no_torch():
    code = (
        "import sys; from tometune.config.model import ModelConfig; from tometune.models.source import fingerprint; "
        "fingerprint(ModelConfig(revision='c' * 40)); sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
