"""Every change of an export's files since its gate is found."""

import json

from tometune.exporting.files import changed, listing


def test_every_change_of_an_export_is_found(tmp_path):
    for name in ("model.safetensors", "tokenizer.json", "run.json"):
        (tmp_path / name).write_text(name)
    gate = {"files": listing(tmp_path)}
    (tmp_path / "gate.json").write_text(json.dumps(gate))
    assert changed(tmp_path, gate) == []
    (tmp_path / "model.safetensors").write_text("MODEL.safetensors")  # of the same size
    assert changed(tmp_path, gate) == ["model.safetensors"]
    (tmp_path / "more").write_text("")
    (tmp_path / "run.json").unlink()
    assert changed(tmp_path, gate) == ["more", "run.json"]
