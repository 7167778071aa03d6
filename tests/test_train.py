"""`train` as a user runs it: what a run leaves behind, and one line where it cannot write."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from tests.conftest import SECRETS, SMOKE, TASKS
from tests.data.conftest import conversation, write_jsonl
from tests.tracking.conftest import records, the_folder
from tests.whole import Workplace, adapter_of, answers_of, assert_one_line, curve_of, record_of
from tometune.config.command_line import READS
from tometune.config.root import Config
from tometune.tracking.tracker import program

pytestmark = pytest.mark.whole


@pytest.fixture(scope="module")
def run(finished: Workplace) -> Path:
    return finished.run_folder()


NUMBERS = {"rouge1": float, "rouge2": float, "rougeL": float}
STAGE = {**NUMBERS, "tasks": {name: {**NUMBERS, "examples": int} for name in TASKS}}
CONTRACT: dict[str, Any] = {
    **{"schema": int, "run_id": str, "status": str, "meaning": int, "config_hash": str, "seed": int},
    "inputs": {"model": str, "data.base": str},
    "model": {"name": str, "id": str, "revision": str, "backend": str, "quantization": str},
    "data": {"name": str, "rows": int, "digest": str, "tokens": int, "trainable_tokens": int},
    "train": {
        **{"steps": int, "tokens": int, "peak_memory_bytes": int},
        **{"seconds": float, "tokens_per_second": float, "final_loss": float},
    },
    "eval": {"base": STAGE, "tuned": STAGE},
    "tracking": {"tracker": str, "mode": str},
    "versions": {"python": str, "torch": str, "transformers": str, "trl": str, "peft": str, "datasets": str},
    "git": {"commit": (str, type(None)), "dirty": (bool, type(None))},
    **{"started": str, "finished": str, "attempts": int, "phases": list},
}


def misfits(value: Any, contract: Any, key: str = "run.json") -> list[str]:
    """Return the keys that are missing or of another type; only the outermost level may hold no others."""
    if not isinstance(contract, dict):
        return [] if isinstance(value, contract) else [f"{key}: {value!r} is no {contract}"]
    found = [f"{key}.{name}: missing" for name in contract if name not in value]
    if key == "run.json":
        found += [f"{key}.{name}: not in the contract" for name in value if name not in contract]
    for name, inner in contract.items():
        found += misfits(value[name], inner, f"{key}.{name}") if name in value else []
    return found


def test_run_json_is_as_contracted(run):
    record = record_of(run)
    assert misfits(record, CONTRACT) == []
    assert record["run_id"] == run.name == f"tiny-pydocs_64-s0-{record['config_hash'][:8]}"
    assert (record["schema"], record["status"], record["attempts"]) == (1, "completed", 1)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", record["finished"])
    assert record["started"] <= record["finished"]
    assert [entry["phase"] for entry in record["phases"]] == ["data", "load", "base", "train", "tuned"]
    assert record["tracking"]["sync"].startswith(f"{program('wandb')} sync ")
    for stage in record["eval"].values():
        mean = sum(task["rougeL"] for task in stage["tasks"].values()) / len(TASKS)
        assert stage["rougeL"] == pytest.approx(mean)


def test_everything_is_there_and_nothing_half_written(run):
    names = ["adapter", "checkpoints", "config.yaml", "eval", "metrics.jsonl", "mix.json", "run.json", "train.log"]
    assert sorted(path.name for path in run.iterdir()) == [*names, "wandb"]
    expected = {f"{stage}/{task}.jsonl" for stage in ("base", "tuned") for task in TASKS}
    assert {str(path.relative_to(run / "eval")) for path in run.glob("eval/*/*.jsonl")} == expected
    for path in run.glob("eval/*/*.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert len(rows) == record_of(run)["eval"]["base"]["tasks"][path.stem]["examples"] == 2
        assert all({"id", "prompt", "prediction", "references", "scores"} <= row.keys() for row in rows)
    assert {path.name for path in (run / "adapter").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    assert [step for step, _ in curve_of(run)] == [1, 2, 3, 4, 5, 6]
    assert "step 6: loss" in (run / "train.log").read_text()


def test_config_yaml_is_resolved_and_whole(run):
    text = (run / "config.yaml").read_text()
    assert "${" not in text
    config = OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.create(text))
    assert (config.model.name, config.trainer.max_steps, config.seeds.order) == ("tiny", 6, 0)


def test_mix_json_lists_the_rows_it_was_made_of(run):
    mix, record = json.loads((run / "mix.json").read_text()), record_of(run)
    assert len(mix["row_ids"]) == len(set(mix["row_ids"])) == mix["rows"] == record["data"]["rows"] == 64
    assert mix["digest"] == record["data"]["digest"]


def test_the_dashboard_has_the_settings_of_this_verb_the_commit_and_gains_with_intervals(run):
    logged = records(the_folder(run))
    (made,) = [record["run"] for record in logged if record["type"] == "run"]
    assert set(made["config"]["update"]) - {"_wandb"} == {*READS["train"]}
    commit = record_of(run)["git"]["commit"]
    assert made.get("git") == (None if commit is None else {"commit": commit})
    keys = {key for record in logged if record["type"] == "summary" for key in record["summary"].get("update", {})}
    assert {"eval/gain/rougeL", "eval/gain/rougeL_low", "eval/gain/tasks/summarisation/nll_high"} <= keys


def test_no_secret_is_in_any_file(finished):
    files = [path for path in finished.folder.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    for path in files:
        content = path.read_bytes()
        assert not [name for name, secret in SECRETS.items() if secret.encode() in content], path


def test_a_folder_of_another_config_is_refused(run, place):
    copy = place.folder / "foreign" / run.name
    shutil.copytree(run, copy)
    record = record_of(run) | {"config_hash": record_of(run)["config_hash"][:8] + "0" * 56}
    (copy / "run.json").write_text(json.dumps(record))
    done = place.verb("train", *SMOKE, "paths.outputs=foreign")
    assert done.returncode == 2
    assert_one_line(done, r"foreign/tiny-\S+: belongs to another config .*move it away or set paths\.outputs")


@pytest.mark.nightly
def test_the_same_command_with_two_threads_makes_the_same_run_twice(place):
    """With steps large enough to be split between them; other tests run with one thread."""
    command = (*SMOKE, "eval.base=false", "trainer.conversations_per_step=16", "trainer.micro_batch=16")
    env, runs = {"OMP_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": ""}, []
    for outputs in ("first", "second"):
        status, stderr = place.train(*command, f"paths.outputs={outputs}", env=env, fresh=True)
        assert status == 0, stderr
        runs.append(place.run_folder(outputs))
        assert record_of(runs[-1])["model"]["device_name"].endswith(" 2 threads")
    for read in (adapter_of, curve_of, answers_of):
        assert read(runs[0]) == read(runs[1]), read


def test_a_full_disk_is_one_line_and_the_run_goes_on_once_there_is_room(place, run, mounted):
    outputs = place.folder / "mounted"
    mounted(outputs, "size=700k")  # room for the scores and one checkpoint
    status, stderr = place.train(*SMOKE, "paths.outputs=mounted")
    assert status == 1
    line = r"SaveError: \S*mounted/\S+: no space left on the disk; .*free some space"
    assert re.search(line, stderr.splitlines()[-1])
    assert "Traceback" not in stderr
    (broken,) = outputs.iterdir()
    assert record_of(broken)["status"] in ("failed", "running")
    kept = list((broken / "checkpoints").glob("*"))
    assert all((path / "trainer_state.json").exists() for path in kept), "no half of one is left"
    mounted(outputs, "size=20m")
    status, stderr = place.train(*SMOKE, "paths.outputs=mounted")
    assert status == 0, stderr
    assert "resuming from checkpoint-2" in stderr
    assert record_of(broken)["status"] == "completed"
    assert adapter_of(broken) == adapter_of(run)
    assert curve_of(broken) == curve_of(run)


def test_an_outputs_folder_that_cannot_be_written_is_one_line(place, mounted):
    mounted(place.folder / "mounted", "ro")
    status, stderr = place.train(*SMOKE, "paths.outputs=mounted/outputs")
    line = f"{place.folder}/mounted: cannot be written to; set paths.outputs to a writable folder"
    assert (status, stderr.splitlines()) == (2, [line])


def test_from_a_file_to_an_answer_in_three_commands(tmp_path):
    """Train on a file, ask whether a pool helps, chat; then compare what was made."""
    place, trial = Workplace(tmp_path), ["model=tiny", "trainer=debug", "tracking=none", "eval.limit=1"]
    rows = ({"question": f"Which tide is {number}?", "answer": f"Low {number}."} for number in range(30))
    write_jsonl(tmp_path / "mine.jsonl", rows)
    write_jsonl(tmp_path / "pool.jsonl", map(conversation, range(20)))
    trained = place.verb("train", "data=mine", "data.path=mine.jsonl", *trial)
    run = place.run_folder()
    assert run.name.startswith("tiny-mine_30-s0-"), trained.stderr
    assert trained.stdout.splitlines()[-1] == "next     tometune chat run=latest against=base"
    assert max(map(len, trained.stdout.splitlines())) <= 80
    record = record_of(run)
    assert (record["data"]["rows"], [*record["eval"]["tuned"]["tasks"]]) == (27, ["held_out_base"])

    question = ["+sweep=does_it_help", "data.path=mine.jsonl", "data.pool.path=pool.jsonl", "sweep.add=[9,90]"]
    swept = place.verb("train", *question, "seed=0", "eval.resamples=200", *trial)
    assert swept.returncode == 0, swept.stderr
    assert "pool.jsonl has 20 rows that mine.jsonl lacks, so no arm adds 90" in swept.stderr.splitlines()
    assert "Does adding rows to mine_30 help? A single seed cannot tell." in swept.stdout
    names = {path.name.partition("-s")[0] for path in (tmp_path / "multirun" / "does_it_help_mine").glob("tiny-*")}
    assert names == {"tiny-mine_30", "tiny-mine_30_plus_9"}

    chat = place.verb("chat", "run=latest", "against=base", "ui=terminal")
    assert chat.returncode == 0, chat.stderr
    assert "run=latest: multirun/does_it_help_mine/tiny-mine_30_plus_9-s0-" in chat.stderr
    report = place.verb("report", f"runs=[{run.name},latest]", "eval.resamples=200")
    assert "Is mine_30_plus_9 better than mine_30? A single seed cannot tell." in report.stdout.replace("\n", " ")
