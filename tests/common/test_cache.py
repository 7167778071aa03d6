import errno
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tometune.common.cache import cached_folder
from tometune.common.files import SaveError


def test_built_once_and_keyed_by_everything(tmp_path):
    built: list[str] = []
    one = cached_folder(tmp_path, "kind", {"a": 1}, lambda folder: built.append(folder.name))
    assert cached_folder(tmp_path, "kind", {"a": 1}, lambda folder: built.append(folder.name)) == one
    assert cached_folder(tmp_path, "kind", {"a": 2}, lambda folder: built.append(folder.name)) != one
    assert len(built) == 2
    assert json.loads((one / "config.json").read_text()) == {"a": 1}


@pytest.mark.parametrize(
    ("raised", "error", "says"),
    [
        (OSError("broken"), OSError, "broken"),
        (OSError(errno.ENOSPC, "No space left on device"), SaveError, "/kind: no space left on the disk"),
    ],
)
def test_a_build_that_fails_leaves_nothing(tmp_path, raised, error, says):
    def build(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise raised

    with pytest.raises(error, match=says):
        cached_folder(tmp_path, "kind", {}, build)
    assert list((tmp_path / "kind").iterdir()) == []


def test_the_slower_of_two_builders_takes_the_others_folder(tmp_path):
    def slow(folder: Path) -> None:
        (folder / "data").write_text("slow")
        cached_folder(tmp_path, "kind", {}, lambda other: (other / "data").write_text("fast") and None)

    folder = cached_folder(tmp_path, "kind", {}, slow)
    assert (folder / "data").read_text() == "fast"
    assert list((tmp_path / "kind").iterdir()) == [folder]


def test_of_two_builders_at_once_one_waits(tmp_path):
    built: list[str] = []

    def build(folder: Path) -> None:
        built.append(folder.name)
        time.sleep(0.2)

    with ThreadPoolExecutor(2) as threads:
        folders = [threads.submit(cached_folder, tmp_path, "kind", {}, build, alone=True) for _ in range(2)]
    assert {future.result() for future in folders} == set((tmp_path / "kind").iterdir()), "no lock is left"
    assert len(built) == 1


@pytest.mark.parametrize("name", ["data", "config.json", "files.json"])
@pytest.mark.parametrize(
    "damage",
    [Path.unlink, lambda path: path.write_bytes(b""), lambda path: path.write_bytes(b"x" * path.stat().st_size)],
)
def test_a_damaged_folder_is_built_again(tmp_path, name, damage):
    built: list[Path] = []

    def build(folder: Path) -> None:
        built.append(folder)
        (folder / "data").write_text("something")

    folder = cached_folder(tmp_path, "kind", {}, build)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    damage(folder / name)
    for _ in range(2):
        assert cached_folder(tmp_path, "kind", {}, build) == folder
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert len(built) == 2
    assert [path.name for path in folder.parent.iterdir()] == [folder.name], "no lock is left"
