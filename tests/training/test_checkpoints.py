import json
from pathlib import Path

import pytest

from tometune.training.checkpoints import FILES, STATE, WEIGHTS, last_checkpoint


def checkpoint(folder: Path, step: int, weights: str = WEIGHTS[0]) -> Path:
    made = folder / f"checkpoint-{step}"
    made.mkdir(parents=True)
    for name in (*FILES, weights, "rng_state.pth"):
        (made / name).write_text("something")
    (made / STATE).write_text(json.dumps({"global_step": step}))
    if weights.endswith("index.json"):
        shards = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
        (made / weights).write_text(json.dumps({"weight_map": dict(zip("abc", [*shards, shards[0]], strict=True))}))
        for shard in shards:
            (made / shard).write_text("something")
    return made


def test_the_newest_is_found_by_number(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path) is last_checkpoint(tmp_path / "none") is None
    for step in (2, 10, 8):
        checkpoint(tmp_path, step)
    found = last_checkpoint(tmp_path)
    assert found is not None
    assert found.name == "checkpoint-10"
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("weights", WEIGHTS)
def test_an_adapter_or_a_whole_model_is_complete_with_the_states_of_all_processes(tmp_path: Path, weights: str) -> None:
    made = checkpoint(tmp_path, 2, weights)
    (made / "rng_state.pth").rename(made / "rng_state_0.pth")
    (made / "rng_state_1.pth").write_text("something")
    assert last_checkpoint(tmp_path) == made


@pytest.mark.parametrize("harm", ["shard", "empty shard", "index"])
def test_a_whole_model_without_one_of_its_files_is_deleted(tmp_path: Path, harm: str) -> None:
    whole, broken = (checkpoint(tmp_path, step, WEIGHTS[-1]) for step in (2, 4))
    if harm == "shard":
        (broken / "model-00002-of-00002.safetensors").unlink()
    elif harm == "empty shard":
        (broken / "model-00001-of-00002.safetensors").write_bytes(b"")
    else:
        (broken / WEIGHTS[-1]).write_text('{"weight_map": {"a": ')
    assert last_checkpoint(tmp_path) == whole
    assert not broken.exists()


@pytest.mark.parametrize("name", [*FILES, WEIGHTS[0], "rng_state.pth"])
@pytest.mark.parametrize("harm", ["missing", "empty"])
def test_one_without_a_file_or_its_content_is_deleted(
    tmp_path: Path, name: str, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    whole, broken = checkpoint(tmp_path, 2), checkpoint(tmp_path, 4)
    (broken / name).unlink() if harm == "missing" else (broken / name).write_bytes(b"")
    assert last_checkpoint(tmp_path) == whole
    assert not broken.exists()
    assert "checkpoint-4 is incomplete" in caplog.text


@pytest.mark.parametrize("state", ['{"global_step": 4, "log_hist', "[]", "{}", '{"global_step": 3}'])
def test_one_whose_state_is_half_or_foreign_is_deleted(tmp_path: Path, state: str) -> None:
    (checkpoint(tmp_path, 4) / STATE).write_text(state)
    assert last_checkpoint(tmp_path) is None
    assert not list(tmp_path.iterdir())


def test_an_older_broken_one_and_what_is_not_ours_are_left_alone(tmp_path: Path) -> None:
    (checkpoint(tmp_path, 2) / STATE).unlink()
    whole = checkpoint(tmp_path, 4)
    (tmp_path / "checkpoint-mine").mkdir()
    assert last_checkpoint(tmp_path) == whole
    assert len(list(tmp_path.iterdir())) == 3
