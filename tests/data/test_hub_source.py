"""Sources on the hub, through the real client and the hub on localhost, in processes of their own."""

import io
import json
import random
from string import ascii_letters

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.conftest import conversation

ID = "mlabonne/FineTome-100k"
CARD = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/train-*\n---\n"
ROWS = [conversation(number, source="infini-instruct-top-500k", score=5.0) for number in range(5)]

CODE = """
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
print(json.dumps(answers))
"""


def parquet(rows):
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


@pytest.fixture
def ask(hub, run_python, tmp_path):
    """Return a function that standardises sources one after the other and gives back rows or errors."""

    def run(*sources, cache="cache", **env):
        done = run_python("-c", CODE, json.dumps(sources), tmp_path / cache, env=hub.env(tmp_path / "hf") | env)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


@pytest.fixture
def finetome(hub):
    return hub.add_dataset(ID, {"README.md": CARD, "data/train-00000-of-00001.parquet": parquet(ROWS)})


def test_rows_and_the_cache_without_a_hub(hub, finetome, ask):
    [(identity, sources, messages)] = ask({"id": ID})
    assert identity.startswith(f"{ID}@{finetome.commit()}/default/train/")
    assert sources == ["infini-instruct-top-500k"] * 5
    assert messages[4][1] == {"role": "assistant", "content": "answer 4"}
    hub.stop()
    (error,) = ask({"id": ID})
    assert "cannot be reached (HF_HUB_OFFLINE=1 uses only the local cache)" in error
    assert ask({"id": ID}, HF_HUB_OFFLINE="1") == [[identity, sources, messages]]
    assert ask({"id": ID}, cache="other", HF_HUB_OFFLINE="1") == [[identity, sources, messages]]


@pytest.mark.nightly
def test_a_branch_that_moved_gives_its_new_rows(hub, finetome, ask):
    [(before, _, old)] = ask({"id": ID})
    changed = [conversation("new", source="x", score=5.0)]
    hub.add_dataset(ID, {"data/train-00000-of-00001.parquet": parquet(changed)})
    [(after, _, new), (again, _, pinned)] = ask({"id": ID}, {"id": ID, "revision": finetome.commit()})
    assert (len(old), len(new)) == (5, 1)
    assert before != after == again
    assert pinned == new


def test_what_can_be_wrong_is_told_apart(hub, finetome, ask):
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
    assert other.startswith("user/other: no conversation column among id, text; a row needs")


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


def test_a_download_that_broke_goes_on_where_it_was(hub, ask, run_python, tmp_path):
    """A connection that breaks in the middle of a shard costs no byte twice; a killed program, no finished shard."""
    letters = random.Random(0)
    rows = [conversation("".join(letters.choices(ascii_letters, k=650)), dataset="d") for _ in range(3000)]
    shards = {f"data/train-0000{part}-of-00002.parquet": parquet(rows[part::2]) for part in range(2)}
    assert all(1_000_000 < len(shard) < 1_400_000 for shard in shards.values())
    hub.add_dataset("user/pool", {"README.md": CARD, **shards})

    def fetched():
        asked = [request for request in hub.requests if "/train-" in request.path and request.method == "GET"]
        hub.requests.clear()
        return [(int(request.path.split("/train-")[1][:5]), request.status) for request in asked]

    hub.cut_after = 700_000
    killed = run_python("-c", KILLED, tmp_path / "cache", env=hub.env(tmp_path / "hf"))
    assert killed.returncode == 9, killed.stderr
    assert fetched()[:2] == [(0, 200), (0, 206)]
    hub.cut_after = None
    [(_, sources, _)] = ask({"id": "user/pool"})
    assert len(sources) == 3000
    assert fetched() == [(1, 200)]
