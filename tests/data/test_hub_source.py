"""Sources on the hub, through the real client and a hub on localhost."""

import io
import json
import random
import subprocess
import sys
from string import ascii_letters

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.conftest import conversation
from tests.hub import Hub
from tests.whole import environment

ID = "mlabonne/FineTome-100k"
CARD = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/train-*\n---\n"
ROWS = [conversation(number, source="infini-instruct-top-500k", score=5.0) for number in range(5)]

# A process that has imported the libraries once, and answers each request in a fork of itself.
CLIENT = """
import json, os, sys
import datasets, huggingface_hub, tometune.data.standardise
for line in sys.stdin:
    code, sys.argv[1:] = json.loads(line)
    if os.fork() == 0:
        exec(code)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
"""
STANDARDISE = """
import json, sys, time
from pathlib import Path
from tometune.config.data import SourceConfig
from tometune.common.errors import UserError
from tometune.data.standardise import standardise

answers = []
for options in json.loads(sys.argv[1]):
    began = time.monotonic()
    try:
        made = standardise(SourceConfig(**options), "data.base", Path(sys.argv[2]))
        answers.append([made.fingerprint, made.rows["source"][:], made.rows["messages"][:]])
    except UserError as error:
        answers.append(str(error))
    assert time.monotonic() - began < 20, "a hub that fails must do so at once"
Path(sys.argv[3]).write_text(json.dumps(answers))
"""


def parquet(rows):
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with Hub(tmp_path_factory.mktemp("hub")) as running:
        yield running


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("client")


@pytest.fixture(scope="module")
def env(hub, folder):
    return environment(folder / "home") | hub.env(folder / "hf")


@pytest.fixture(scope="module")
def run(env):
    """Return a function that runs code with arguments in a fork of the client and returns the exit status."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", CLIENT], env=env, text=True, **pipes) as process:

        def execute(code, *arguments):
            print(json.dumps([code, arguments]), file=process.stdin, flush=True)
            return int(process.stdout.readline())

        yield execute


@pytest.fixture(scope="module")
def ask(run, folder):
    """Return a function that standardises sources one after the other and returns rows or errors."""

    def standardised(*sources, run=run):
        assert run(STANDARDISE, json.dumps(sources), str(folder / "cache"), str(folder / "answer")) == 0
        return json.loads((folder / "answer").read_text())

    return standardised


@pytest.fixture
def finetome(hub):
    return hub.add_dataset(ID, {"README.md": CARD, "data/train-00000-of-00001.parquet": parquet(ROWS)})


@pytest.mark.nightly
def test_a_branch_that_moved_gives_its_new_rows(hub, ask):
    repository = hub.add_dataset("user/moved", {"README.md": CARD, "data/train-00000-of-00001.parquet": parquet(ROWS)})
    source = {"id": "user/moved"}
    [(before, _, old)] = ask(source)
    changed = [conversation("new", source="x", score=5.0)]
    hub.add_dataset("user/moved", {"data/train-00000-of-00001.parquet": parquet(changed)})
    [(after, _, new), (again, _, pinned)] = ask(source, {**source, "revision": repository.commit()})
    assert (len(old), len(new)) == (5, 1)
    assert before != after == again
    assert pinned == new


@pytest.mark.usefixtures("finetome")
def test_each_error_names_its_cause(hub, ask):
    hub.add_dataset("user/gated", {"README.md": CARD, "data/train-00000-of-00001.parquet": parquet(ROWS)})
    hub.gated.add("user/gated")
    hub.add_dataset("user/broken", {"README.md": CARD, "data/train-00000-of-00001.parquet": b"PAR1 not parquet"})
    hub.add_dataset("user/empty", {"README.md": "# Nothing\n"})
    hub.add_dataset("user/other", {"train.jsonl": '{"id": 1, "text": "x"}\n'})
    missing, revision, gated, split, subset, broken, empty, other = ask(
        {"id": "nobody/nothing"},
        {"id": ID, "revision": "v9"},
        {"id": "user/gated"},
        {"id": ID, "split": "tests"},
        {"id": ID, "subset": "de"},
        {"id": "user/broken"},
        {"id": "user/empty"},
        {"id": "user/other"},
    )
    assert missing.startswith("data.base.id=nobody/nothing: no such repository on the hub")
    assert revision.startswith(f"data.base.id={ID}: has no such revision")
    assert gated.startswith("data.base.id=user/gated: is gated; accept its terms")
    for error in (split, subset, broken, empty):
        assert error.startswith("data.base.id=")
        assert error.endswith("; check data.base.subset, data.base.split and the dataset's page")
        assert "\n" not in error
    assert "tests" in split
    assert "de" in subset
    assert other[1:] == [[], []], "its only row has no column that is known, and is counted"


KILLED = """
import os, sys, threading, time
from pathlib import Path
from huggingface_hub import constants
from tometune.config.data import SourceConfig
from tometune.data.standardise import standardise

constants.DOWNLOAD_CHUNK_SIZE = 100_000  # it writes 10 MB at a time, which is more than a test should send

def watch():
    blobs = Path(os.environ["HF_HOME"], "hub", "datasets--user--pool", "blobs")
    while not any(blob.stat().st_size > 900_000 for blob in blobs.glob("*") if blob.suffix != ".incomplete"):
        time.sleep(0.01)
    os._exit(9)  # between the first shard and the second, or in the second

threading.Thread(target=watch, daemon=True).start()
standardise(SourceConfig(id="user/pool"), "data.pool", Path(sys.argv[1]))
"""


def test_an_interrupted_download_resumes(hub, ask, run, folder):
    """A connection that breaks in the middle of a shard costs no byte twice; a killed program, no finished shard."""
    letters = random.Random(0)
    rows = [conversation("".join(letters.choices(ascii_letters, k=650)), dataset="d") for _ in range(3000)]
    shards = {f"data/train-0000{part}-of-00002.parquet": parquet(rows[part::2]) for part in range(2)}
    assert all(1_000_000 < len(shard) < 1_400_000 for shard in shards.values())
    hub.add_dataset("user/pool", {"README.md": CARD, **shards})

    def fetched():
        gets = [request for request in hub.requests if "/train-" in request.path and request.method == "GET"]
        hub.requests.clear()
        return [(int(request.path.split("/train-")[1][:5]), request.status) for request in gets]

    fetched()
    hub.cut_after = 700_000
    assert run(KILLED, str(folder / "cache")) == 9
    assert fetched()[:2] == [(0, 200), (0, 206)]
    hub.cut_after = None
    [(_, sources, _)] = ask({"id": "user/pool"})
    assert len(sources) == 3000
    assert fetched() == [(1, 200)]


def test_cached_rows_need_no_hub_and_nothing_of_ours_is_in_its_cache(hub, finetome, ask, env, folder):
    """The last test of this module, because it stops the hub."""
    [(identity, sources, messages)] = ask({"id": ID})
    assert identity.startswith(f"{ID}@{finetome.commit()}/default/train/")
    assert sources == ["infini-instruct-top-500k"] * 5
    assert messages[4][1] == {"role": "assistant", "content": "answer 4"}
    assert not list((folder / "hf").rglob("shards"))
    hub.stop()
    (error,) = ask({"id": ID})
    assert "cannot be reached (HF_HUB_OFFLINE=1 uses only the local cache)" in error

    def offline(code, *arguments):  # libraries read the variable when they are imported
        return subprocess.call([sys.executable, "-c", code, *arguments], env=env | {"HF_HUB_OFFLINE": "1"})

    assert ask({"id": ID}, run=offline) == [[identity, sources, messages]]
