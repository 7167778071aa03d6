"""Publishing to a hub on localhost: what is checked before, and what is sent."""

from contextlib import nullcontext
from hashlib import sha256

import httpx
import pytest

from tests.exporting.conftest import TOKEN
from tometune.common.errors import UserError
from tometune.exporting.hub import check_repository, files_of, push


@pytest.mark.whole
def test_a_pushed_model_is_private_and_has_the_files_of_the_export(trained, exported, hub, tmp_path):
    hub.tokens.add(TOKEN)
    env = hub.env(tmp_path / "hf") | {"HF_TOKEN": TOKEN}
    run = f"run={trained.run_folder()}"
    done = trained.verb("export", run, "format=merged_16bit", "push_to=tester/tuned", env=env)
    assert done.returncode == 0, done.stderr
    assert "exists and passed its checks" in done.stderr
    assert f"{hub.url}/tester/tuned" in done.stdout
    assert hub.private == {"tester/tuned"}
    pushed, made = (
        {path.name: path.read_bytes() for path in folder.iterdir()}
        for folder in (hub.root / "models" / "tester" / "tuned", exported / "merged_16bit")
    )
    assert b'from_pretrained("tester/tuned")' in pushed.pop("README.md")
    assert pushed == {name: content for name, content in made.items() if name != "README.md"}
    written = [path for path in trained.folder.rglob("*") if path.is_file() and path.stat().st_size < 1_000_000]
    assert not [path for path in written if TOKEN.encode() in path.read_bytes()]


def test_what_may_be_pushed_is_checked_before_anything_is_made(ours, monkeypatch):
    ours.add_model("tester/seen")
    ours.tokens.add("hf_may_read")
    cases = [
        ("hf_unknown", "tester/x", True, "push_to=tester/x: the token may not write there; make one"),
        ("hf_may_read", "tester/x", True, "push_to=tester/x: the token of tester may not write there; make one"),
        (TOKEN, "somebody/x", True, "push_to=somebody/x: the token of tester may not write there"),
        (TOKEN, "tester/seen", True, "push_to=tester/seen: exists and is public, so everybody would see this model"),
        (TOKEN, "tester/seen", False, None),
        (TOKEN, "tester/new", True, None),
    ]
    for token, repository, private, says in cases:
        monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(UserError, match=says) if says else nullcontext():
            check_repository(repository, private)
    assert ours.private == {"tester/new"}


def test_an_upload_is_one_commit_and_sends_no_large_file_that_has_arrived(ours, tmp_path):
    files = {f"{name}.gguf": name.encode() * 300_000 for name in "abc"}
    for name, content in files.items():
        (tmp_path / name[0]).mkdir()
        (tmp_path / name[0] / name).write_bytes(content)
    for name in ("a.gguf", "b.gguf"):  # an earlier upload was interrupted
        ours.objects[sha256(files[name]).hexdigest()] = files[name]
    push([tmp_path / name for name in "abc"], "# Several", "tester/several", private=True)
    assert [request.method for request in ours.requests].count("PUT") == 1
    assert sum("/commit/" in request.path for request in ours.requests) == 1
    repository = ours.root / "models" / "tester" / "several"
    assert {path.name: path.read_bytes() for path in repository.iterdir()} == files | {"README.md": b"# Several"}


def test_weights_of_an_earlier_upload_are_deleted(ours, tmp_path):
    """transformers loads model.safetensors before the shards of an index."""
    uploads = {
        "old": ["model.safetensors", "adapter_config.json", "tuned-q8_0.gguf", "config.json", "NOTES.md"],
        "new": ["model-00001-of-00001.safetensors", "model.safetensors.index.json", "config.json"],
        "single": ["model.safetensors"],
        "gguf": ["tuned-q4_k_m.gguf"],
    }
    for upload, names in uploads.items():
        (tmp_path / upload).mkdir()
        for name in names:
            (tmp_path / upload / name).write_text(upload)
        push([tmp_path / upload], "# Card", "tester/again", private=True)
        kept = {"README.md": "# Card", **dict.fromkeys(names, upload)}
        if upload != "old":
            kept |= {"NOTES.md": "old", "config.json": "new", "tuned-q8_0.gguf": "old"}
        if upload == "gguf":
            kept["model.safetensors"] = "single"
        found = ours.root / "models" / "tester" / "again"
        assert {path.name: path.read_text() for path in found.iterdir()} == kept


def test_an_interrupted_upload_is_resumed_by_the_same_command(ours, monkeypatch, tmp_path):
    def breaks_off(*_: object, **__: object) -> None:
        raise httpx.ReadTimeout("the read operation timed out")

    monkeypatch.setattr("huggingface_hub.HfApi.create_commit", breaks_off)
    resumes = "^push_to=tester/tuned: the upload was interrupted; run the same command again to resume it$"
    with pytest.raises(UserError, match=resumes):
        push([tmp_path], "# Card", "tester/tuned", private=True)
    monkeypatch.setattr("huggingface_hub.HfApi.whoami", breaks_off)
    with pytest.raises(UserError, match=r"^push_to=tester/tuned: the model hub cannot be reached"):
        check_repository("tester/tuned", private=True)  # nothing has been sent


def test_files_of_several_quants_do_not_hide_each_other(tmp_path):
    folders = [tmp_path / "gguf-q8_0", tmp_path / "gguf-q4_k_m"]
    for folder in folders:
        folder.mkdir()
        own = folder.name
        for name, text in {"run.json": "{}", "gate.json": own, "Modelfile": own, f"{own}.gguf": ""}.items():
            (folder / name).write_text(text)
        (folder / "templates").mkdir()
        (folder / "templates" / "tools.jinja").write_text(own)
    found = files_of(folders)
    several = {"gate.json", "gate-q4_k_m.json", "Modelfile", "Modelfile-q4_k_m", "gguf-q8_0.gguf", "gguf-q4_k_m.gguf"}
    below = {"templates/tools.jinja", "templates/tools-q4_k_m.jinja"}
    assert set(found) == {"run.json", *several, *below}
    assert found["gate-q4_k_m.json"].samefile(folders[1] / "gate.json")
