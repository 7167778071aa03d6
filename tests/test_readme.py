"""The README's commands run as they are written, made cheap: tiny weights, few rows, a hub on localhost."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.common.test_hub import CARD, FINETOME, parquet
from tests.data.conftest import conversation, write_jsonl
from tests.evaluation.test_hub_tasks import TASKS, write_sets
from tests.hub import Hub
from tests.whole import Workplace

CHECKOUT = Path(__file__).parents[1]
README = (CHECKOUT / "README.md").read_text(encoding="utf-8")
RUN, MIX = "python -m tometune.", ["data.base.rows=4", "data.rows=8"]
LINES = [  # `tometune VERB` is run as the module, which needs no installed script
    re.sub("^tometune ", RUN, line.partition("  #")[0].strip())
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
]
TINY = ["model=tiny", "trainer=debug", "trainer.max_steps=2", "eval.limit=1"]
HUB = [f"eval.tasks.{task}.{value}" for task in TASKS for value in ("revision=main", "max_new_tokens=4")]
TABLE = [*TINY, *HUB, "data=mix_100k,mix_300k", "seed=0", "data.base.rows=4", "data.rows=4", "eval.resamples=200"]

COMMANDS = {
    f"{RUN}train data=mine data.path=mine.jsonl": TINY,
    f"{RUN}train -m +sweep=does_it_help data.path=mine.jsonl": [*TINY, "seed=0", "sweep.add=[4]", "eval.resamples=200"],
    f"{RUN}prepare data=mix_300k": ["model=tiny", *MIX],
    f"{RUN}train data=mix_300k": [*TINY, *HUB, *MIX],
    f"{RUN}train -m +sweep=table plan=true": TABLE,
    f"{RUN}train -m +sweep=table": TABLE,
    f"{RUN}train -m +sweep=leave_one_source_out plan=true": [*TINY, *HUB, *MIX, "seed=0"],
    f"{RUN}train -m +sweep=same_steps": [*(each for each in TABLE if "steps" not in each), "trainer.max_tokens=500"],
    f"{RUN}report sweep.name=table require='mix_300k>mix_100k:rougeL>=-0.01'": ["eval.resamples=200"],
    f"{RUN}evaluate run=outputs/<run_id> eval=pydocs": ["eval.limit=1"],
}
"""Each command of the README, in its order, and what makes it cheap."""

OTHERS = {
    "git clone <this repository> tometune && cd tometune": "needs an address",
    "bash scripts/quickstart.sh": "below",
    "bash scripts/setup.sh unsloth": "downloads what only a GPU needs",
    "source .venv/bin/activate": "the tests' own environment is active",
    f"{RUN}chat run=latest against=base": "tests/chatting, in a browser",
    f"{RUN}export run=outputs/<run_id> format=gguf quant=q4_k_m": "tests/exporting",
    f"{RUN}export run=outputs/<run_id> push_to=user/name": "tests/exporting",
}


def test_every_command_is_known():
    assert sorted({*LINES} - {""}) == sorted([*COMMANDS, *OTHERS])


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory):
    """A workplace with the files that the commands name, and a hub with the real names."""
    place = Workplace(tmp_path_factory.mktemp("user"))
    base = [conversation(n, source="infini-instruct-top-500k", score=4.0) for n in range(4)]
    (place.folder / "base.parquet").write_bytes(parquet(base))
    pool = write_jsonl(place.folder / "pool.jsonl", [conversation(n, dataset="xy"[n % 2]) for n in range(2, 22)])
    write_jsonl(place.folder / "mine.jsonl", [conversation(n) for n in range(30, 42)])
    with Hub(tmp_path_factory.mktemp("hub")) as hub:
        hub.add_dataset(FINETOME, {"README.md": CARD, "data/train-00000-of-00001.parquet": parquet(base)})
        hub.add_dataset("arcee-ai/The-Tome", {"train.jsonl": pool.read_text()})
        write_sets(hub)
        place.env |= hub.env(place.folder / "hf")
        yield place


@pytest.mark.whole
@pytest.mark.parametrize("command", COMMANDS)
def test_command(command, user):
    run_id = next((folder.name for folder in user.folder.glob("outputs/tiny-mix_300k-*")), "none")
    words = shlex.split(command.replace("<run_id>", run_id).removeprefix("python "))
    done = user.python(*words, *COMMANDS[command])
    assert done.returncode == (4 if "require" in command else 0), done.stderr
    assert "Traceback" not in done.stderr
    if "require" in command:  # of a single seed
        assert done.stdout.startswith("undecided: mix_300k − mix_100k: ROUGE-L")
    elif "tometune.prepare" in command:
        assert "trainable tokens" in done.stdout
    elif "plan=true" in command:
        assert not list(user.folder.glob(f"multirun/{re.findall('sweep=([a-z_]+)', command)[0]}/*/run.json"))
    elif "does_it_help" in command:
        assert "Does adding rows to mine_12 help? A single seed cannot tell." in " ".join(done.stdout.split())
    elif "tometune.report" in command or "-m" in words[2:]:
        assert "Is mix_300k better than mix_100k?" in done.stdout
        assert len(list(user.folder.glob("multirun/table/tiny-mix_*/run.json"))) == 2
    else:
        assert ("held_out_base" if "data=mine" in command else "mean of tasks") in done.stdout


@pytest.mark.whole
def test_quickstart_ends_with_the_table_and_the_paths(clean_env, run_verb, tmp_path):
    """The script itself, on `tiny`; a repeated command shows the results again."""
    cheap = ["model=tiny", "trainer=debug", "trainer.max_steps=2", "eval.limit=1", "data.rows=64"]
    cheap.append(f"paths.outputs={tmp_path}/outputs")
    script = ["bash", "scripts/quickstart.sh", *cheap]
    first = subprocess.run(script, cwd=CHECKOUT, env=clean_env, capture_output=True, text=True)
    second = run_verb("train", "+experiment=quickstart", *cheap)
    (run,) = (tmp_path / "outputs").iterdir()
    for done in (first, second):
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        shown = run if done is first else run.relative_to(tmp_path)  # below the folder where the command runs
        assert f"run      {shown}" in lines
        assert any(line.startswith("sync     ") and line.endswith(f" {shown}/wandb/offline*") for line in lines)
        assert any(line.split()[:3] == ["mean", "of", "tasks"] for line in lines)
    assert "nothing to do" in second.stderr


def test_the_shown_error_is_what_is_printed(run_verb):
    (wrong, message), *_ = re.findall(r"`(\S+)` gets\s+one line: `(.*?)`", " ".join(README.split()))
    done = run_verb("train", wrong)
    assert (done.returncode, done.stderr) == (2, f"{message}\n")


def test_what_the_table_of_choices_names_is_there():
    for group in ("model", "data", "lora", "trainer", "eval", "tracking"):
        (row,) = re.findall(rf"^\| `{group}=` \|(.*)$", README, re.MULTILINE)
        named = set(re.findall(r"`([a-z0-9_]+)`", row))
        there = {path.stem for path in (CHECKOUT / "conf" / group).glob("*.yaml")}
        kinds = {name for name in there if not re.match(r"files_\d|mix_\d|pydocs_\d", name)}
        assert named - there == set(), group
        assert kinds - named == set(), group
