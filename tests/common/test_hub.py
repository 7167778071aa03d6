"""The real hub client against the hub on localhost, each time in a process of its own."""

import io
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

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
ROWS = [
    {
        "conversations": [{"from": "human", "value": f"What is {n}?"}, {"from": "gpt", "value": f"A number, {n}."}],
        "source": "infini-instruct-top-500k",
        "score": 5.2 - n / 100,
    }
    for n in range(5)
]
TURN = pa.struct([("from", pa.string()), ("value", pa.string())])
SCHEMA = pa.schema([("conversations", pa.list_(TURN)), ("source", pa.string()), ("score", pa.float64())])


def parquet(rows: list[dict]) -> bytes:
    """Return rows in FineTome's schema as a parquet file."""
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), buffer)
    return buffer.getvalue()


@pytest.fixture
def finetome(hub: Hub):
    return hub.add_dataset(FINETOME, {"README.md": CARD, "data/train-00000-of-00001.parquet": parquet(ROWS)})


@pytest.fixture
def ask(run_python: Callable, hub: Hub, tmp_path: Path):
    """Return a function that runs code against the hub and gives back the JSON of its last line."""

    def run(code: str, **env: str):
        done = run_python("-c", "import json\n" + code, env=hub.env(tmp_path / "hf") | env)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


def error_of(call: str, module: str = "datasets") -> str:
    """Return code that prints the text of the error that `call` raises, then the names of its class and bases."""
    return f"""
import {module}
try:
    {call}
except Exception as error:
    print(json.dumps([str(error), *(kind.__name__ for kind in type(error).__mro__)]))
"""


def load(arguments: str) -> str:
    return f"""
import datasets
data = datasets.load_dataset({arguments})
print(json.dumps([data.column_names, data.to_list()]))
"""


def test_load_dataset_parquet(hub, finetome, ask):
    columns, rows = ask(load(f"'{FINETOME}', split='train'"))
    assert columns == ["conversations", "source", "score"]
    assert rows == ROWS
    assert any("datasets/4" in request.user_agent for request in hub.requests)
    assert {request.status for request in hub.requests if "/train-00000" in request.path} <= {200, 206}


@pytest.mark.nightly
def test_load_dataset_jsonl(hub, ask):
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    hub.add_dataset("arcee-ai/The-Tome", {"train.jsonl": lines})
    _, rows = ask(load("'arcee-ai/The-Tome', split='train'"))
    assert rows == ROWS


@pytest.mark.nightly
def test_load_dataset_at_a_commit(finetome, ask):
    _, rows = ask(load(f"'{FINETOME}', split='train', revision='{finetome.commit()}'"))
    assert rows == ROWS


def test_commit_follows_the_content(hub, finetome):
    before = finetome.commit()
    hub.add_dataset(FINETOME, {"README.md": CARD})
    assert finetome.commit() == before
    hub.add_dataset(FINETOME, {"README.md": CARD + "more"})
    assert finetome.commit() != before


@pytest.mark.nightly
def test_commit_from_the_api(finetome, ask):
    code = f"import huggingface_hub\nprint(json.dumps(huggingface_hub.HfApi().dataset_info('{FINETOME}').sha))"
    assert ask(code) == finetome.commit()


@pytest.mark.nightly
def test_from_pretrained(hub, ask):
    repository = hub.add_model("user/tiny")
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=8, **shape))
    model.save_pretrained(repository.folder)
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "hello": 1, "world": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]")
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    tokenizer.save_pretrained(repository.folder)
    ids, total, template = ask("""
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained("user/tiny")
tokenizer = AutoTokenizer.from_pretrained("user/tiny")
print(json.dumps([tokenizer("hello world").input_ids, sum(p.double().sum().item() for p in model.parameters()),
                  tokenizer.chat_template]))
""")
    assert ids == [1, 2]
    assert total == pytest.approx(sum(p.double().sum().item() for p in model.parameters()))
    assert template == tokenizer.chat_template


def test_gated(hub, finetome, ask):
    hub.gated.add(FINETOME)
    hub.tokens.add("hf_good")
    call = f"huggingface_hub.hf_hub_download('{FINETOME}', 'README.md', repo_type='dataset')"
    assert "GatedRepoError" in ask(error_of(call, "huggingface_hub"))
    assert "GatedRepoError" in ask(error_of(call, "huggingface_hub"), HF_TOKEN="hf_bad")
    text, name, *_ = ask(error_of(f"datasets.load_dataset('{FINETOME}')"))
    assert name == "DatasetNotFoundError"
    assert "is a gated dataset on the Hub" in text
    _, rows = ask(load(f"'{FINETOME}', split='train'"), HF_TOKEN="hf_good")
    assert rows == ROWS


@pytest.mark.nightly
@pytest.mark.parametrize("token", [{}, {"HF_TOKEN": "hf_any"}])
def test_missing_repository(token, ask):
    text, name, *_ = ask(error_of("datasets.load_dataset('nobody/nothing')"), **token)
    assert name == "DatasetNotFoundError"
    assert "doesn't exist on the Hub or cannot be accessed" in text
    assert "OSError" in ask(error_of("transformers.AutoConfig.from_pretrained('nobody/nothing')", "transformers"))


def test_missing_revision(finetome, ask):
    zeros = "0" * 40
    text, name, *_ = ask(error_of(f"datasets.load_dataset('{FINETOME}', revision='{zeros}')"))
    assert name == "DatasetNotFoundError"
    assert text.startswith(f"Revision '{zeros}' doesn't exist for dataset '{FINETOME}'")
    call = f"huggingface_hub.HfApi().dataset_info('{FINETOME}', revision='{zeros}')"
    assert "RevisionNotFoundError" in ask(error_of(call, "huggingface_hub"))


@pytest.mark.nightly
def test_missing_file(finetome, ask):
    call = f"huggingface_hub.hf_hub_download('{FINETOME}', 'nothing.json', repo_type='dataset')"
    assert "EntryNotFoundError" in ask(error_of(call, "huggingface_hub"))


def test_unreachable(hub, finetome, ask):
    """The client retries a file for 23 s but gives up on a repository's commit at once; the cache needs no hub."""
    ask(load(f"'{FINETOME}', split='train'"))
    hub.stop()
    call = f"huggingface_hub.HfApi().dataset_info('{FINETOME}')"
    assert "ConnectError" in ask(error_of(call, "huggingface_hub"))
    _, rows = ask(load(f"'{FINETOME}', split='train'"), HF_HUB_OFFLINE="1")
    assert rows == ROWS


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


def test_no_way_out_of_the_tree(hub, finetome):
    (hub.root / "secret.txt").write_text("secret")
    answer = httpx.get(f"{hub.url}/datasets/{FINETOME}/resolve/main/..%2F..%2F..%2Fsecret.txt")
    assert answer.status_code == 404


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
