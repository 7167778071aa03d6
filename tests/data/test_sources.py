"""Sources: local files by name, split and content, and datasets of a hub on localhost, through the real client."""

import io
import json
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path
from string import ascii_letters

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants

from tests.data.conftest import conversation, error_of, files, write_jsonl
from tests.hub import Hub
from tests.whole import environment, fork_server
from tometune.common.errors import UserError
from tometune.config.data import SourceConfig
from tometune.data.sources import files_of, fingerprint, read
from tometune.data.standardise import standardise

CODE = """
import sys
from tometune.config.data import SourceConfig, SourceKind
from tometune.data.sources import fingerprint
print(fingerprint(SourceConfig(kind=SourceKind.files, path=sys.argv[1]), "data.base"))
print(fingerprint(SourceConfig(id="a/b", revision="c" * 40), "data.base"))
print({"torch", "transformers", "datasets", "pyarrow", "huggingface_hub"} & set(sys.modules))
"""


def texts(source):
    return [row["conversations"][0]["value"] for batch in read(source, "data.base") for row in batch.rows]


def test_the_content_and_suffix_of_files_make_the_fingerprint(tmp_path):
    rows = [conversation(1), conversation(2)]
    variants = {
        "one": {"a.jsonl": rows, "b.json": rows[:1]},
        "suffix": {"a.jsonl": rows, "b.jsonl": rows[:1]},
        "order": {"a.jsonl": rows[::-1], "b.json": rows[:1]},
        "repeat": {"a.jsonl": rows, "b.json": rows[:1], "c.json": rows[:1]},
        "fewer": {"a.jsonl": rows},
    }
    for folder, content in variants.items():
        for name, lines in content.items():
            write_jsonl(tmp_path / folder / name, lines)
    found = {folder: fingerprint(files(tmp_path / folder), "k") for folder in variants}
    assert len(set(found.values())) == len(variants)
    write_jsonl(tmp_path / "names" / "z" / "b.jsonl", rows)
    write_jsonl(tmp_path / "names" / "c.json", rows[:1])
    os.utime(tmp_path / "names" / "c.json", (1, 1))
    renamed = files(tmp_path / "names")
    assert fingerprint(renamed, "k") == found["one"] != fingerprint(files(tmp_path / "names", split="test"), "k")
    assert texts(renamed) == texts(files(tmp_path / "one")), "the names do not decide the order of rows"


def test_fingerprints_import_nothing_heavy(tmp_path):
    assert fingerprint(SourceConfig(id="a/b", revision="c" * 40, subset="en"), "k") == f"a/b@{'c' * 40}/en/train"
    file = write_jsonl(tmp_path / "x.jsonl", [conversation(1)])
    done = subprocess.run([sys.executable, "-c", CODE, file], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [fingerprint(files(file), "k"), f"a/b@{'c' * 40}/default/train", "set()"]


def test_folders_and_globs(tmp_path):
    for name in ("a.jsonl", "deep/b.jsonl", ".cache/c.jsonl", "deep/.d.jsonl", "notes.txt"):
        write_jsonl(tmp_path / name, [conversation(name)])
    assert {file.name for file in files_of(str(tmp_path), "k")} == {"a.jsonl", "b.jsonl"}
    assert [file.name for file in files_of(f"{tmp_path}/*.jsonl", "k")] == ["a.jsonl"]
    assert {file.name for file in files_of(f"{tmp_path}/**/*.jsonl", "k")} == {"a.jsonl", "b.jsonl"}
    assert {file.name for file in files_of(f"{tmp_path}/d*/*.jsonl", "k")} == {"b.jsonl"}


TRAIN = "data/train-00000-of-00002.jsonl data/train-00001-of-00002.jsonl"
ONLY_TRAIN = "INFO only train is read, not {}; name a file to read it"
NO_TRAIN = "WARNING no file is named as train, so others are read: "
UNKNOWN = "INFO files with other suffixes are not read: "


@pytest.mark.parametrize(
    ("names", "path", "read", "line"),
    [
        ("train.jsonl valid.jsonl test.jsonl", "", "train.jsonl", ONLY_TRAIN.format("test.jsonl, valid.jsonl")),
        (f"{TRAIN} data/test-00000.jsonl", "/**/*.*", TRAIN, ONLY_TRAIN.format("data/test-00000.jsonl")),
        ("one.jsonl two.jsonl dev.csv", "", "one.jsonl two.jsonl", ONLY_TRAIN.format("dev.csv")),
        ("latest.jsonl contest.jsonl trainval.jsonl", "", "latest.jsonl contest.jsonl trainval.jsonl", None),
        ("a.jsonl holdout.jsonl held_out/b.jsonl testset.jsonl test2.jsonl", "", "a.jsonl", ONLY_TRAIN[:8]),
        ("test.jsonl dev/a.jsonl", "", "test.jsonl dev/a.jsonl", NO_TRAIN + "dev/a.jsonl, test.jsonl"),
        ("test.jsonl notes.json", "/t*", "test.jsonl", NO_TRAIN + "test.jsonl"),
        ("test.jsonl", "/test.jsonl", "test.jsonl", None),
        ("a.jsonl b.jsonl.bz2 c.xlsx .d.txt", "", "a.jsonl", UNKNOWN + "b.jsonl.bz2, c.xlsx"),
        ("a.jsonl " + " ".join(f"{n:02}.png" for n in range(12)), "", "a.jsonl", UNKNOWN + "00.png"),
        ("a.jsonl b.txt", "/*.jsonl", "a.jsonl", None),
    ],
)
def test_only_train_is_read_and_the_log_names_files_that_may_be_missed(tmp_path, caplog, names, path, read, line):
    caplog.set_level("INFO")
    for name in names.split():
        write_jsonl(tmp_path / "test" / name, [conversation(name)])
    assert sorted(texts(files(f"{tmp_path}/test{path}"))) == sorted(f"question {name}" for name in read.split())
    told = [f"{record.levelname} {record.getMessage()}" for record in caplog.records]
    assert len(told) == bool(line)
    if line:
        level, _, text = line.partition(" ")
        assert told[0].startswith(f"{level} data.base.path={tmp_path}/test{path}: {text}")
        assert told[0].endswith(" and 2 more") == (".png" in names)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (None, "data.base.path: is not set; set it to"),
        ("missing.jsonl", "data.base.path={}/missing.jsonl: no such file; name a JSONL"),
        ("*.parquet", "data.base.path={}/*.parquet: no such file; name a JSONL"),
        ("empty", "data.base.path={}/empty: has no file that ends in .parquet, .jsonl, .ndjson, "),
        ("notes.txt", "data.base.path={}/notes.txt: cannot be read; the name must end in .parquet, .jsonl, .ndjson"),
        ("x" * 5000 + ".jsonl", "data.base.path={}/xxx"),
        ("~nobody-of-that-name/x.jsonl", "data.base.path=~nobody-of-that-name/x.jsonl: cannot be looked up"),
        ("a\0b.jsonl", "data.base.path={}/a"),
        ("x.parquet.gz", "data.base.path={}/x.parquet.gz: cannot be read; the name must end in .parquet, .jsonl"),
        ("links", "{}/links/lost.jsonl: cannot be read (No such file or directory); check that it"),
    ],
)
def test_no_files(tmp_path, path, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "lost.jsonl").symlink_to(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "x.parquet.gz").write_text("x")
    source = files(path and (path if path.startswith("~") else tmp_path / path))
    error = error_of(fingerprint, source, "data.base")
    assert error.startswith(message.format(tmp_path))
    assert len(error) < 600


ID = "mlabonne/FineTome-100k"
CARD = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/train-*\n---\n"
ROWS = [conversation(number, source="infini-instruct-top-500k", score=5.0) for number in range(5)]


def shard_files(*shards):
    """Return the files of a repository with these rows."""
    made = {"README.md": CARD}
    for number, rows in enumerate(shards):
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), buffer)
        made[f"data/train-{number:05}-of-{len(shards):05}.parquet"] = buffer.getvalue()
    return made


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with Hub(tmp_path_factory.mktemp("hub")) as running:
        running.add_dataset(ID, shard_files(ROWS))
        yield running


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("client")


@pytest.fixture(scope="module")
def ask(hub, folder):
    """Return a function that standardises sources one after the other, and returns rows or errors."""
    env, in_a_fork = environment(folder) | hub.env(folder / "hf"), fork_server().run

    def standardised(*sources, run=in_a_fork, **options):
        arguments = ["-m", __name__, json.dumps(sources), str(folder / "cache"), str(folder / "answer")]
        (folder / "answer").unlink(missing_ok=True)
        done = run(arguments, env, Path.cwd(), **options)
        return json.loads((folder / "answer").read_text()) if done.returncode == 0 else done.returncode

    return standardised


def main(sources, cache, answer):
    """Standardise sources in a process of its own: libraries read the hub's address when they are imported."""
    constants.DOWNLOAD_CHUNK_SIZE = 100_000  # it writes 10 MB at a time, which is more than a test should send
    answers = []
    for options in json.loads(sources):
        began = time.monotonic()
        try:
            made = standardise(SourceConfig(**options), "data.base", Path(cache))
            answers.append([made.fingerprint, made.rows["source"][:], made.rows["messages"][:]])
        except UserError as error:
            answers.append(str(error))
        assert time.monotonic() - began < 20, "a hub that fails must do so at once"
    Path(answer).write_text(json.dumps(answers))


@pytest.mark.nightly
def test_a_branch_that_moved_gives_its_new_rows(hub, ask):
    repository, source = hub.add_dataset("user/moved", shard_files(ROWS)), {"id": "user/moved"}
    [(before, _, old)] = ask(source)
    hub.add_dataset("user/moved", shard_files([conversation("new", source="x", score=5.0)]))
    [(after, _, new), (again, _, pinned)] = ask(source, {**source, "revision": repository.commit()})
    assert (len(old), len(new)) == (5, 1)
    assert before != after == again
    assert pinned == new


def test_each_error_of_a_hub_dataset_names_its_cause(hub, ask):
    hub.add_dataset("user/gated", shard_files(ROWS))
    hub.gated.add("user/gated")
    hub.add_dataset("user/broken", {"README.md": CARD, "data/train-00000-of-00001.parquet": b"PAR1 not parquet"})
    hub.add_dataset("user/empty", {"README.md": "# Nothing\n"})
    hub.add_dataset("user/other", {"train.jsonl": '{"id": 1, "text": "x"}\n'})
    check = "; check data.base.subset, data.base.split and the dataset's page"
    wrong = [
        ({"id": "nobody/nothing"}, "data.base.id=nobody/nothing: no such repository on the hub", ""),
        ({"id": ID, "revision": "v9"}, f"data.base.id={ID}: has no such revision", ""),
        ({"id": "user/gated"}, "data.base.id=user/gated: is gated; accept its terms", ""),
        ({"id": ID, "split": "tests"}, f"data.base.id={ID}: ", check),
        ({"id": ID, "subset": "de"}, f"data.base.id={ID}: ", check),
        ({"id": "user/broken"}, "data.base.id=user/broken: data/train-00000-of-00001.parquet: is not a", check),
        ({"id": "user/empty"}, "data.base.id=user/empty: ", check),
    ]
    *errors, other = ask(*(source for source, _, _ in wrong), {"id": "user/other"})
    for error, (_, start, end) in zip(errors, wrong, strict=True):
        assert error.startswith(start)
        assert error.endswith(end)
        assert "\n" not in error
    assert "tests" in errors[3]
    assert "de" in errors[4]
    assert other[1:] == [[], []], "its only row has no column that is known, and is counted"


def test_an_interrupted_download_resumes(hub, ask):
    """A connection that breaks in the middle of a shard costs no byte twice; a killed program, no finished shard."""
    letters = random.Random(0)
    rows = [conversation("".join(letters.choices(ascii_letters, k=650)), dataset="d") for _ in range(3000)]
    shards = shard_files(rows[::2], rows[1::2])
    assert all(1_000_000 < len(shard) < 1_400_000 for name, shard in shards.items() if name != "README.md")
    hub.add_dataset("user/pool", shards)

    def fetched():
        gets = [request for request in hub.requests if "/train-" in request.path and request.method == "GET"]
        hub.requests.clear()
        return [(int(request.path.split("/train-")[1][:5]), request.status) for request in gets]

    fetched()
    hub.cut_after = 700_000
    assert ask({"id": "user/pool"}, moment=("huggingface_hub:hf_hub_download", 2, "SIGKILL")) == -9
    assert fetched() == [(0, 200), (0, 206)]
    hub.cut_after = None
    [(_, sources, _)] = ask({"id": "user/pool"})
    assert len(sources) == 3000
    assert fetched() == [(1, 200)]


def test_cached_rows_need_no_hub_and_nothing_of_ours_is_in_its_cache(hub, ask, folder):
    """The last test of this module, because it stops the hub."""
    [(identity, sources, messages)] = ask({"id": ID})
    assert re.match(rf"{ID}@[0-9a-f]{{40}}/default/train/", identity)
    assert sources == ["infini-instruct-top-500k"] * 5
    assert messages[4][1] == {"role": "assistant", "content": "answer 4"}
    assert not list((folder / "hf").rglob("shards"))
    hub.stop()
    (error,) = ask({"id": ID})
    assert "cannot be reached (HF_HUB_OFFLINE=1 uses only the local cache)" in error

    def offline(arguments, env, _):  # libraries read the variable when they are imported
        return subprocess.run([sys.executable, *arguments], env=env | {"HF_HUB_OFFLINE": "1"})

    assert ask({"id": ID}, run=offline) == [[identity, sources, messages]]


if __name__ == "__main__":
    main(*sys.argv[1:])
