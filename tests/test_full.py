"""Full fine-tuning (`lora=none`) through the verbs: trained, scored again, exported."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import SMOKE
from tests.exporting.conftest import SHORT, gate_of, save_base
from tests.exporting.conftest import SMOKE as PEAKED
from tests.whole import Workplace, answers_of, assert_one_line, curve_of, record_of
from tometune.common.errors import UserError
from tometune.config.export import ExportConfig
from tometune.config.root import Config, PathsConfig
from tometune.runs.finished import find_finished

pytestmark = pytest.mark.whole
FULL = ("lora=none", "trainer.learning_rate=2e-3")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workplace, Path]:
    """A workplace with one finished run, and the run's folder."""
    made = Workplace(tmp_path_factory.mktemp("full"))
    status, stderr = made.train(*SMOKE, *FULL, "eval.base=true")
    assert status == 0, stderr
    assert "full fine-tuning: " in stderr
    return made, made.run_folder()


def test_the_record_says_what_was_trained(run):
    place, folder = run
    record = record_of(folder)
    assert record["train"]["kind"] == "full"
    assert record["train"]["trainable_parameters"] == record["model"]["parameters"]
    assert not (folder / "adapter").exists()
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {p.name for p in (folder / "model").iterdir()}
    assert curve_of(folder)[-1][1] < curve_of(folder)[0][1]
    assert "enabled: false" in (folder / "config.yaml").read_text()
    texts = [path.read_text() for path in (folder / "model").glob("*.json")]
    assert not [text for text in texts if str(place.folder) in text], "a path of this machine"


def test_exports_that_need_an_adapter_are_refused(run):
    config = Config(run=str(run[1]), paths=PathsConfig(cache=str(run[0].folder / "cache")))
    config.format = ["adapter", "gguf"]
    with pytest.raises(UserError, match=r"^format=adapter: tiny-.* was trained with lora=none and has none"):
        find_finished(config)
    config.format, config.export = Config().format, ExportConfig(base="x")
    with pytest.raises(UserError, match=r"^export\.base=x: tiny-.* is a whole model, which is not merged"):
        find_finished(config)


def test_evaluate_scores_the_saved_model_again(run):
    place, folder = run
    kept = answers_of(folder)
    for path in folder.glob("eval/*/*.jsonl"):
        path.unlink()
    for overrides in ((), ("eval.limit=1",)):
        done = place.verb("evaluate", f"run={folder}", *overrides, "tracking=none")
        assert done.returncode == 0, done.stderr
        assert answers_of(folder) == kept
    (found,) = folder.glob("evaluations/*/evaluation.json")
    record = json.loads(found.read_text())
    assert (record["adapter"], record["whole_model"]) == (None, str(folder / "model"))
    (folder / "model").rename(folder / "gone")
    message = r"model/config\.json: is missing; repeat the command that made this run"
    assert_one_line(place.verb("evaluate", f"run={folder}"), message)
    (folder / "gone").rename(folder / "model")


@pytest.mark.nightly
def test_exports_are_the_model_itself(place):
    base = save_base(place.folder / "base", seed=3)  # in bfloat16; its answers differ from prompt to prompt
    made = place.verb("train", *PEAKED, *SHORT, *FULL, f"model.id={base}", "model.weights=pretrained")
    assert made.returncode == 0, made.stderr
    run = place.run_folder()
    done = place.verb("export", f"run={run.name}", "format=merged_16bit")
    assert done.returncode == 0, done.stderr
    assert "merged_16bit: passed, " in done.stdout
    assert "nats per token from the run's model" in done.stdout
    merged = run / "export" / "merged_16bit"
    trained, exported = (load_file(folder / "model.safetensors") for folder in (run / "model", merged))
    assert {weight.dtype for weight in exported.values()} == {torch.float16}
    assert all(torch.equal(weight.half(), exported[name]) for name, weight in trained.items())
    assert set(gate_of(merged)["checks"]) == {"template", "logits", "rouge"}
    card = (merged / "README.md").read_text()
    assert "LoRA" not in card
    for text in ("fine-tuned in full on the mix", "| trained parameters | all ", "the run's model as trained"):
        assert text in card
    again = place.verb("export", f"run={run.name}")
    assert again.returncode == 0, again.stderr
    assert "exists and passed its checks on" in again.stderr
