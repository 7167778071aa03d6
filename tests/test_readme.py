"""The README's commands run as they are written, made cheap: tiny weights, few rows, a hub on localhost."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.common.test_hub import CARD, FINETOME, parquet
from tests.data.conftest import conversation, write_jsonl
from tests.evaluation.test_hub_tasks import TASKS, write_sets
from tests.hub import Hub
from tometune.models import tiny

CHECKOUT = Path(__file__).parents[1]
README = (CHECKOUT / "README.md").read_text(encoding="utf-8")
LINES = [
    line.partition("  #")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
]
RUN, MIX = "python -m tometune.", ["data.base.rows=4", "data.rows=8"]
TINY = ["model=tiny", "trainer=debug", "eval.limit=1"]
HUB = [f"eval.tasks.{task}.{value}" for task in TASKS for value in ("revision=main", "max_new_tokens=4")]

COMMANDS = {
    f"{RUN}prepare data=mix_300k": ["model=tiny", *MIX],
    f"{RUN}train data=mix_300k": [*TINY, *HUB, *MIX],
    f"{RUN}train -m data=mix_100k,mix_200k,mix_300k seed=0,1,2": [*TINY, *HUB, "data.base.rows=4", "data.rows=4"],
    f"{RUN}report sweep.name=adhoc": ["eval.resamples=200"],
    f"{RUN}report sweep.name=adhoc publish=wandb": ["eval.resamples=200"],
    f"{RUN}train data=files_300k data.base.path=base.parquet data.pool.path=pool.jsonl": [*TINY, *HUB, *MIX],
    f"{RUN}train data=files_100k data.base.path=mine.jsonl data.rows=5000": [*TINY, *HUB, "data.rows=4"],
    f"{RUN}train +eval/task@eval.tasks.mine=jsonl eval.tasks.mine.path=mine_test.jsonl": [
        *TINY,
        *HUB,
        "data.rows=4",
    ],
    f"{RUN}train data=mix_300k data.contamination=drop": [*TINY, *HUB, *MIX],
    f"{RUN}train data=mix_300k_top": [*TINY, *HUB, *MIX],
    f"{RUN}evaluate run=outputs/<run_id> eval=pydocs": ["eval.limit=1"],
    f"{RUN}evaluate model.id=HuggingFaceTB/SmolLM2-360M-Instruct model.quantization=none": ["eval.limit=1", *HUB],
}
"""Each command of the README, in its order, and what makes it cheap."""

OTHERS = {
    "git clone <this repository> tometune && cd tometune": "a stranger's address",
    "bash scripts/quickstart.sh": "below",
    "bash scripts/setup.sh gpu": "downloads what only a GPU needs",
    "source .venv/bin/activate": "the tests' own environment is active",
    "wandb login": "wants an account",
    f"{RUN}train -m +sweep=random_vs_best": "two of the commands above, with two seeds; tests/config composes it",
    f"{RUN}chat run=outputs/<run_id> against=base": "tests/chatting, in a browser",
    f"{RUN}chat run=outputs/<run_id> ui=terminal": "tests/chatting",
    f"{RUN}export run=outputs/<run_id> format=gguf quant=q4_k_m": "tests/exporting",
    f"{RUN}export run=outputs/<run_id> push_to=user/name": "tests/exporting",
}


def test_every_command_is_known():
    assert sorted({*LINES} - {""}) == sorted([*COMMANDS, *OTHERS])


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory):
    """The repositories by their real names, each with a few rows in its real schema, and a model."""
    root = tmp_path_factory.mktemp("hub")
    with Hub(root) as running:
        base = [conversation(n, source="infini-instruct-top-500k", score=4.0) for n in range(4)]
        running.add_dataset(FINETOME, {"README.md": CARD, "data/train-00000-of-00001.parquet": parquet(base)})
        pool = "".join(json.dumps(conversation(n, dataset="x")) + "\n" for n in range(2, 22))
        running.add_dataset("arcee-ai/The-Tome", {"train.jsonl": pool})
        write_sets(running.root / "datasets")
        model = running.add_model("HuggingFaceTB/SmolLM2-360M-Instruct")
        shutil.copytree(tiny.built(root / "cache"), model.folder, dirs_exist_ok=True)
        yield running


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder the user is in, with the files that the commands name."""
    folder = tmp_path_factory.mktemp("user")
    base = [conversation(n, source="x", score=4.0) for n in range(4)]
    (folder / "base.parquet").write_bytes(parquet(base))
    write_jsonl(folder / "pool.jsonl", [conversation(n) for n in range(2, 22)])
    write_jsonl(folder / "mine.jsonl", [conversation(n) for n in range(4)])
    write_jsonl(folder / "mine_test.jsonl", [{"input": "a", "references": ["b"]}])
    return folder


@pytest.mark.whole
@pytest.mark.parametrize("command", COMMANDS)
def test_command(command, hub, user, clean_env, tmp_path_factory):
    run_id = next((folder.name for folder in user.glob("outputs/tiny-mix_300k-*")), "none")
    words = shlex.split(command.replace("<run_id>", run_id).removeprefix("python "))
    done = subprocess.run(
        [sys.executable, *words, *COMMANDS[command], f"paths.cache={user}/cache"],
        cwd=user,
        env=clean_env | hub.env(user / "hf"),
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    if "tometune.prepare" in command:
        assert "trainable tokens" in done.stdout
    elif "tometune.report" in command:
        assert "Is mix_300k better than mix_100k?" in done.stdout
        assert ("wandb sync" in done.stdout) == ("publish" in command)
    elif "-m" in words[2:]:
        assert len(list(user.glob("multirun/adhoc/tiny-mix_*/run.json"))) == 9
    else:
        assert "mean of tasks" in done.stdout


@pytest.mark.whole
def test_quickstart_ends_with_the_table_and_the_paths(clean_env, tmp_path):
    """The script itself, on `tiny`: what SmolLM2 makes of it is measured in docs/benchmarks.md."""
    cheap = ["model=tiny", "trainer=debug", "eval.limit=2", "data.rows=64", f"paths.outputs={tmp_path}/outputs"]
    for attempt in (1, 2):
        script = [*("bash", "scripts/quickstart.sh"), *cheap]
        done = subprocess.run(script, cwd=CHECKOUT, env=clean_env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert ("nothing to do" in done.stderr) == (attempt == 2)
        (run,) = (tmp_path / "outputs").iterdir()
        lines = done.stdout.splitlines()
        assert f"run      {run}" in lines
        assert any(line.startswith(f"wandb    {run}/wandb/offline-run-") for line in lines)
        assert any(line.split()[:3] == ["mean", "of", "tasks"] for line in lines)


def test_the_shown_error_is_what_is_printed(tmp_path):
    shown = re.search(r"```text\n\$ python (.*?)\n(.*?)\n```", README, re.DOTALL)
    done = subprocess.run([sys.executable, *shown[1].split()], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr.strip()) == (2, shown[2])


def test_what_the_table_of_choices_names_is_there():
    for group in ("model", "data", "lora", "trainer", "eval", "tracking"):
        (row,) = re.findall(rf"^\| `{group}=` \|(.*)$", README, re.MULTILINE)
        named = set(re.findall(r"`([a-z0-9_]+)`", row))
        there = {path.stem for path in (CHECKOUT / "conf" / group).glob("*.yaml")}
        kinds = {name for name in there if not re.match(r"files_\d|mix_\d|pydocs_\d", name)}
        assert named - there == set(), group
        assert kinds - named == set(), group
