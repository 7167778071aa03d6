"""The commit behind a branch is kept."""

import io
from functools import partial
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq

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
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), buffer)
    return buffer.getvalue()


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
