import os
import subprocess
import sys

import pytest

from tests.data.conftest import conversation, error_of, files, write_jsonl
from tometune.config.data import SourceConfig
from tometune.data.sources import files_of, fingerprint, read

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
    assert fingerprint(renamed, "k") == found["one"]
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
        (
            "a.jsonl holdout.jsonl held_out/b.jsonl testset.jsonl test2.jsonl validate.jsonl",
            "",
            "a.jsonl",
            ONLY_TRAIN[:8],
        ),
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
        ("**x", "data.base.path={}/**x: no such file; name a JSONL"),
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
