"""The hub on localhost answers as the real one does, and we keep the commit behind a branch."""

import io
from functools import partial
from types import SimpleNamespace

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.hub import Hub
from tometune.common.hub import commit_of

FINETOME = "mlabonne/FineTome-100k"
CARD = """---
license: mit
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*
---
# FineTome
"""
TURN = pa.struct([("from", pa.string()), ("value", pa.string())])
SCHEMA = pa.schema([("conversations", pa.list_(TURN)), ("source", pa.string()), ("score", pa.float64())])


def parquet(rows: list[dict]) -> bytes:
    """Return rows in FineTome's schema as a parquet file."""
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), buffer)
    return buffer.getvalue()


@pytest.fixture
def finetome(hub: Hub):
    return hub.add_dataset(FINETOME, {"README.md": CARD})


def test_commit_follows_the_content(hub, finetome):
    before = finetome.commit()
    hub.add_dataset(FINETOME, {"README.md": CARD})
    assert finetome.commit() == before
    hub.add_dataset(FINETOME, {"README.md": CARD + "more"})
    assert finetome.commit() != before


def test_range_and_etag(hub, finetome):
    url = f"{hub.url}/datasets/{FINETOME}/resolve/main/README.md"
    whole, part, head = httpx.get(url), httpx.get(url, headers={"Range": "bytes=4-10"}), httpx.head(url)
    assert whole.text == CARD
    assert (part.status_code, part.text) == (206, CARD[4:11])
    assert part.headers["content-range"] == f"bytes 4-10/{len(CARD)}"
    assert int(head.headers["content-length"]) == len(CARD)
    assert head.content == b""
    assert head.headers["etag"] == whole.headers["etag"]
    assert whole.headers["x-repo-commit"] == finetome.commit()


def test_the_commit_behind_a_branch_is_kept_in_our_own_cache(monkeypatch, tmp_path):
    """Offline it is read again, and before that the hub's own cache is asked. Nothing is written into that one."""
    sha = "0123456789abcdef0123456789abcdef01234567"
    theirs = tmp_path / "hub"
    monkeypatch.setenv("TOMETUNE_CACHE", str(tmp_path / "ours"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(theirs))
    monkeypatch.setattr("huggingface_hub.HfApi.repo_info", lambda *_, **__: SimpleNamespace(sha=sha))
    find = partial(commit_of.__wrapped__, "model.id", "user/name", "main", "model")
    assert find() == sha
    assert not theirs.exists()
    assert (tmp_path / "ours" / "pins" / "models--user--name" / "main").read_text() == sha
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert find() == sha
    monkeypatch.setenv("TOMETUNE_CACHE", str(tmp_path / "empty"))
    assert find() == "main"
    (theirs / "models--user--name" / "refs").mkdir(parents=True)
    (theirs / "models--user--name" / "refs" / "main").write_text("another")
    assert find() == "another"
