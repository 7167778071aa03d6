import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data.conftest import conversation, files, write_jsonl
from tometune.common.errors import UserError
from tometune.config.data import SourceConfig
from tometune.data.sources import content_digest, files_of, fingerprint, read

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


def test_content_identifies_files_not_names_nor_places(tmp_path):
    one = write_jsonl(tmp_path / "one" / "a.jsonl", [conversation(1)])
    same = write_jsonl(tmp_path / "other" / "b.jsonl", [conversation(1)])
    changed = write_jsonl(tmp_path / "c.jsonl", [conversation(2)])
    assert fingerprint(files(one), "k") == fingerprint(files(same), "k") == fingerprint(files(same.parent), "k")
    assert fingerprint(files(one), "k") != fingerprint(files(changed), "k")


def test_one_fingerprint_means_one_order_of_rows(tmp_path):
    for folder, names in {"one": "abcd", "other": "dcba"}.items():
        for number, name in enumerate(names):
            write_jsonl(tmp_path / folder / f"{name}.jsonl", [conversation(number)])
    one, other = files(tmp_path / "one"), files(tmp_path / "other")
    assert fingerprint(one, "k") == fingerprint(other, "k")
    assert texts(one) == texts(other)
    assert sorted(texts(one)) == [f"question {number}" for number in range(4)]


def test_hub_datasets_are_known_by_commit(tmp_path):
    source = SourceConfig(id="a/b", revision="c" * 40, subset="en", split="test")
    assert fingerprint(source, "k") == f"a/b@{'c' * 40}/en/test"
    assert fingerprint(SourceConfig(id="a/b", revision="c" * 40), "k") == f"a/b@{'c' * 40}/default/train"


def test_fingerprints_import_nothing_heavy(tmp_path):
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


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (None, "data.base.path: is not set; set it to"),
        ("", "data.base.path: is not set; set it to"),
        ("missing.jsonl", "data.base.path={}/missing.jsonl: no such file; name a parquet"),
        ("*.parquet", "data.base.path={}/*.parquet: no such file; name a parquet"),
        ("**x", "data.base.path={}/**x: no such file; name a parquet"),
        ("empty", "data.base.path={}/empty: has no file that ends in .parquet, .jsonl, .json; name another"),
        ("notes.txt", "data.base.path={}/notes.txt: cannot be read; the name must end in .parquet, .jsonl, .json"),
    ],
)
def test_no_files(tmp_path, path, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError) as caught:
        fingerprint(files(path and tmp_path / path), "data.base")
    assert str(caught.value).startswith(message.format(tmp_path))


def test_neither_time_nor_name_is_content_but_every_byte_and_every_file_is(tmp_path):
    file = write_jsonl(tmp_path / "in" / "a.jsonl", [conversation(1), conversation(2)])
    source = files(tmp_path / "in")
    seen = [fingerprint(source, "k")]
    os.utime(file, (1, 1))
    file.rename(file.with_name("z.jsonl"))
    assert fingerprint(source, "k") == seen[0]
    write_jsonl(tmp_path / "in" / "copy.jsonl", [conversation(1), conversation(2)])
    seen.append(fingerprint(source, "k"))
    write_jsonl(tmp_path / "in" / "copy.jsonl", [conversation(2), conversation(1)])
    seen.append(fingerprint(source, "k"))
    with (tmp_path / "in" / "copy.jsonl").open("a") as last:
        last.write("\n")
    seen.append(fingerprint(source, "k"))
    assert len(set(seen)) == 4


@pytest.mark.parametrize("path", ["x" * 5000 + ".jsonl", "~nobody-of-that-name/x.jsonl", "a\0b.jsonl"])
def test_a_path_that_the_system_refuses(path):
    with pytest.raises(UserError, match=r"^data\.base\.path=") as caught:
        fingerprint(files(path), "data.base")
    assert len(str(caught.value)) < 400


def test_the_kind_of_a_file_is_content(tmp_path):
    """`[{}]` is rows in a .json file and an error in a .jsonl file."""
    for name in ("x.json", "x.jsonl"):
        (tmp_path / name).write_text("[{}]")
    assert fingerprint(files(tmp_path / "x.json"), "k") != fingerprint(files(tmp_path / "x.jsonl"), "k")


def test_files_of_one_content_and_two_kinds_are_read_in_one_order(tmp_path):
    for folder, names in {"one": ("a.json", "b.jsonl"), "other": ("b.json", "a.jsonl")}.items():
        for name in names:
            write_jsonl(tmp_path / folder / name, [conversation(1)])
    orders = [[Path(batch.origin).suffix for batch in read(files(tmp_path / name), "k")] for name in ("one", "other")]
    assert orders == [[".json", ".jsonl"]] * 2


def test_a_folder_with_a_file_that_is_gone(tmp_path):
    (tmp_path / "lost.jsonl").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"lost\.jsonl: cannot be read \(No such file or directory\)"):
        fingerprint(files(tmp_path), "data.base")


def test_a_file_is_hashed_once_until_it_changes(tmp_path, monkeypatch):
    file = tmp_path / "a.jsonl"
    file.write_text("1")
    opened = []
    real = Path.open
    monkeypatch.setattr(Path, "open", lambda self, *mode: opened.append(self) or real(self, *mode))
    first = content_digest(file)
    assert content_digest(file) == first
    assert len(opened) == 1
    with real(file, "w") as target:
        target.write("22")
    assert content_digest(file) != first
