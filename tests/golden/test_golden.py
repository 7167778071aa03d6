"""What a refactoring must not change, recomputed and compared with the files in this folder.

Where a change is meant, `TOMETUNE_RECORD=1 pytest tests/golden -k NAME` writes a file again, and `git diff` shows what
it did.
"""

import contextlib
import gc
import importlib
import io
import json
import logging
import os
import platform
import sys
from collections.abc import Callable
from difflib import unified_diff
from hashlib import sha256
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from tests.config.conftest import config_of, sweep_of
from tests.data.conftest import write_jsonl
from tests.fixtures.llama3 import llama3_tokenizer
from tests.golden import cases
from tests.whole import OURS
from tometune.config.model import Precision
from tometune.config.root import Config, conf_dir
from tometune.data import pydocs
from tometune.data.tokens import tokenise
from tometune.models.source import locate
from tometune.models.tokenizer import load_tokenizer
from tometune.runs.identity import identity
from tometune.runs.inputs import RunInputs, cache_folder, fingerprints
from tometune.runs.run import name_of

RECORD = "TOMETUNE_RECORD" in os.environ
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="recorded on a machine without a GPU")
HERE = Path(__file__).parent
TIMES = ("second", "memory")
"""Parts of the names in metrics.jsonl that say how fast and in how much memory."""


def commands(name: str) -> list[str]:
    """Return the command lines of a golden file: what follows each `$`."""
    lines = (HERE / name).read_text(encoding="utf-8").splitlines()
    return [line[2:] for line in lines if line.startswith("$ ")]


def run(*arguments: str) -> tuple[int, list[str]]:
    """Run `tometune VERB …` in this process; returns its exit status and what it says on stderr, without the log."""
    said, status, argv = io.StringIO(), 0, sys.argv
    sys.argv = ["tometune", *arguments]
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            importlib.import_module("tometune.__main__").main()
    except SystemExit as stop:
        status = int(stop.code or 0)
    finally:
        sys.argv = argv
        logging.disable(logging.NOTSET)
    return status, said.getvalue().splitlines()


def configs_of(line: str) -> list[Config]:
    arguments = cases.overrides(line)
    return sweep_of(*arguments) if arguments[0] == "-m" else [config_of(*arguments)]


def inputs_of(config: Config) -> dict[str, str]:
    """Return the fingerprints of a run's inputs; the documentation's depends on the Python, so a word replaces it."""
    return {key: text.replace(pydocs.fingerprint(), "PYDOCS") for key, text in fingerprints(config).items()}


def run_ids(folder: Path) -> str:
    """Return the ids of the runs of each command line on a machine with bfloat16, and what the first id is made of."""
    lines = []
    with mock.patch("tometune.models.machine.auto_precision", return_value=Precision.bf16):
        for line in commands("run_ids.txt"):
            lines += [f"$ {line}", *(name_of(config, inputs_of(config))[0] for config in configs_of(line))]
        (config,) = configs_of(commands("run_ids.txt")[0])
        return "\n".join([*lines, json.dumps(identity(config, inputs_of(config)), indent=1)]) + "\n"


def mixes(folder: Path) -> str:
    lines = []
    for line in commands("mixes.txt"):
        (config,) = configs_of(line)
        manifest = RunInputs.resolve(config).mix.manifest()
        parts = [row_id.split(":") for row_id in manifest.pop("row_ids")]
        ids = [f"{origin[0]}:{key[:8]}" for origin, key in parts]
        lines += [f"$ {line}", json.dumps(manifest), *(" ".join(ids[n : n + 10]) for n in range(0, len(ids), 10))]
    return "\n".join(lines) + "\n"


def tokens(folder: Path) -> str:
    rows = [{"messages": [{"role": role, "content": text} for role, text in turns]} for turns in cases.CONVERSATIONS]
    write_jsonl(folder / "turns.jsonl", rows)
    made = {}
    for name in cases.TOKENIZERS:
        model = "tiny" if name == "llama3" else name
        config = config_of(f"model={model}", "data=files_100k", f"data.rows={len(rows)}", "data.base.path=turns.jsonl")
        cache = cache_folder(config)
        tokenizer = (
            llama3_tokenizer() if name == "llama3" else load_tokenizer(locate(config.model, cache, weights=False))
        )
        result = tokenise(RunInputs.resolve(config).mix, tokenizer, 120, cache)
        columns = {key: [list(map(int, ids)) for ids in result.dataset[key]] for key in ("input_ids", "labels")}
        made[name] = {key: sha256(json.dumps(ids).encode()).hexdigest() for key, ids in columns.items()}
        made[name] |= vars(result.counts)
    return json.dumps(made, indent=1) + "\n"


def machine() -> dict[str, str]:
    """Return what the bytes of trained weights depend on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    wanted = ("vendor_id", "cpu family", "model", "model name")
    cpu = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    named = " ".join(cpu[name] for name in wanted if name in cpu)
    return {"cpu": named or platform.processor(), "torch": torch.__version__}


def smoke_runs(folder: Path) -> str:
    """Return weights and answers (their sha256), the curve without times, and the counts of short trainings."""
    made: dict[str, Any] = {"machine": machine()}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for number, line in enumerate(cases.SMOKE_RUNS):
        status, said = run("train", *cases.overrides(line), f"paths.outputs=smoke{number}")
        assert status == 0, said
        (trained,) = (folder / f"smoke{number}").iterdir()
        weights = [path for path in sorted(trained.rglob("*.safetensors")) if "checkpoints" not in path.parts]
        points = [json.loads(text) for text in (trained / "metrics.jsonl").read_text().splitlines()]
        answers = [json.loads(text) for text in (trained / "eval/tuned/summarisation.jsonl").read_text().splitlines()]
        made[line] = {
            "run_id": trained.name,
            "data": json.loads((trained / "run.json").read_text())["data"],
            "weights": {str(path.relative_to(trained)): sha256(path.read_bytes()).hexdigest() for path in weights},
            "answers": sha256(json.dumps([answer["prediction"] for answer in answers]).encode()).hexdigest(),
            "metrics": [{k: v for k, v in point.items() if not any(word in k for word in TIMES)} for point in points],
        }
    torch.set_num_threads(threads)
    return json.dumps(made, indent=1) + "\n"


def tables(folder: Path) -> str:
    text = ""
    for sweep in cases.write_sweeps(folder / "multirun"):
        status, said = run("report", f"sweep.name={sweep.name}", "eval.resamples=2000")
        assert status == 0, said
        for name in ("table.md", "table.csv", "table.json"):
            text += f"==== {sweep.name}/{name}\n{(sweep / name).read_text(encoding='utf-8')}"
    return text.replace(str(folder), "FOLDER")


def errors(folder: Path) -> str:
    lines = []
    for line in commands("errors.txt"):
        status, said = run(*cases.overrides(line))
        lines += [f"$ {line}", *said, f"(exit status {status})", ""]
    return "\n".join(lines).replace(str(folder), "FOLDER").replace(str(conf_dir()), "CONF")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The folder with the files of the cases, of a user who has set nothing in the environment."""
    folder = tmp_path.resolve()
    cases.write_files(folder)
    monkeypatch.chdir(folder)
    unset = {name: text for name, text in os.environ.items() if not name.startswith(OURS)}
    gc.disable()  # to compose a config makes many objects and no garbage worth collecting: a third of the time
    with mock.patch.dict(os.environ, {**unset, "HOME": str(folder), "TOMETUNE_CACHE": f"{folder}/cache"}, clear=True):
        yield folder
    gc.enable()


def computed(name: str, compute: Callable[[Path], str], place: Path) -> tuple[str, str]:
    text = compute(place)
    if RECORD:
        (HERE / name).write_text(text, encoding="utf-8")
    return (HERE / name).read_text(encoding="utf-8"), text


@pytest.mark.parametrize(
    ("name", "compute"),
    [
        *(("run_ids.txt", run_ids), ("mixes.txt", mixes), ("tables.txt", tables)),
        pytest.param("tokens.json", tokens, marks=pytest.mark.smollm2),
        pytest.param("errors.txt", errors, marks=no_gpu),
    ],
)
def test_text(name: str, compute: Callable[[Path], str], place: Path) -> None:
    texts = (text.splitlines() for text in computed(name, compute, place))
    difference = "\n".join(unified_diff(*texts, f"recorded {name}", "computed", n=1, lineterm=""))
    assert not difference, f"\n{difference}"


@no_gpu
def test_smoke_runs(place: Path) -> None:
    """Bytes where they were recorded; on another kind of CPU or with another torch, all but the last digits."""
    kept, made = map(json.loads, computed("smoke_runs.json", smoke_runs, place))
    same = made.pop("machine") == kept.pop("machine")
    assert made == (kept if same else {line: Nearly(run) for line, run in kept.items()})


class Nearly(dict[str, Any]):
    """A run that is equal to one whose weights and answers differ, and whose numbers differ by less than a percent."""

    def __eq__(self, other: object) -> bool:
        assert isinstance(other, dict)
        points = zip(self["metrics"], other["metrics"], strict=True)
        return self["data"] == other["data"] and all(
            kept == pytest.approx(made, rel=0.01, abs=0.01) for kept, made in points
        )
