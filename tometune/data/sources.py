"""Sources: hub datasets, local files and the embedded documentation, read as batches of plain rows."""

import glob
import json
import logging
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

from tometune.common.errors import UserError
from tometune.common.files import write_json
from tometune.common.hub import commit_of, hub_errors, pinned
from tometune.config.data import SourceConfig, SourceKind
from tometune.data.readers import BATCH, SUFFIXES, Batch, batches, read_file, unreadable

log = logging.getLogger(__name__)

LONGEST = 200
"""Characters of a path that the system refuses, in the error."""


def fingerprint(source: SourceConfig, key: str) -> str:
    """Return what identifies a source's content, without reading its rows.

    Files are known by the sha256 of their contents and their suffix, whatever their names and places; a hub dataset by
    id and commit.

    Args:
        source: what is to be read.
        key: where it stands in the config, for errors, e.g. `data.base`.

    Raises:
        UserError: a file is missing.
    """
    if source.kind is SourceKind.pydocs:
        from tometune.data import pydocs

        return f"pydocs-{pydocs.fingerprint()}-{'filtered' if source.filtered else 'all'}"
    if source.kind is SourceKind.hub:
        commit = pinned(f"{key}.id", str(source.id), source.revision, "dataset")
        return f"{source.id}@{commit}/{source.subset or 'default'}/{source.split}"
    return f"files-{files_hash(files_of(source.path, f'{key}.path'))}"


def files_of(path: str | None, key: str) -> list[Path]:
    """Return the files behind a path: one file, a folder's (hidden ones left out), or a glob's.

    Raises:
        UserError: there are none, or one is of a kind that cannot be read.
    """
    if not path:
        raise UserError(f"{key}: is not set; set it to a parquet, JSONL or JSON file, a folder of them, or a glob")
    try:
        found = _found(Path(path).expanduser())
    except (OSError, RuntimeError, ValueError) as error:  # no rights, a name too long, no such home, a null byte
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise UserError(f"{key}={path[:LONGEST]}: cannot be looked up ({reason}); check the path") from error
    if found is None:
        raise UserError(f"{key}={path}: holds no file that ends in {', '.join(SUFFIXES)}; name another folder")
    if not found:
        raise UserError(f"{key}={path}: no such file; name a parquet, JSONL or JSON file, a folder of them, or a glob")
    for file in found:
        if file.suffix not in SUFFIXES:
            raise UserError(f"{key}={file}: cannot be read; it must end in {', '.join(SUFFIXES)}")
    return found


def _found(given: Path) -> list[Path] | None:
    """Return the files behind a path; None for a folder without one."""
    if given.is_dir():
        inside = (file for file in given.rglob("*") if file.suffix in SUFFIXES and not file.is_dir())
        return [
            file for file in inside if not any(part.startswith(".") for part in file.relative_to(given).parts)
        ] or None
    if given.exists():
        return [given]
    matches = (Path(match) for match in glob.glob(str(given), recursive=True))  # noqa: PTH207 -- takes any pattern
    return [file for file in matches if not file.is_dir()]


def files_hash(files: list[Path]) -> str:
    """Hash the contents and kinds of files; their names and order do not matter."""
    return sha256(b"".join(sorted(_digest(file) for file in files))).hexdigest()[:20]


def _digest(file: Path) -> bytes:
    """Return the sha256 of a file's content and the suffix, by which it is read."""
    return content_digest(file) + file.suffix.encode()


def content_digest(file: Path) -> bytes:
    """Return the sha256 of a file's content, read a piece at a time, and anew where its size or time has changed.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        found = file.stat()
        return _content_digest(file.resolve(), found.st_size, found.st_mtime_ns)
    except OSError as error:
        raise unreadable(file, error) from error


@lru_cache(4096)
def _content_digest(file: Path, _size: int, _changed: int) -> bytes:
    """Hash a file once a process: identity, the cache's key and the order of files all ask for it."""
    digest = sha256()
    with file.open("rb") as content:
        while chunk := content.read(2**20):
            digest.update(chunk)
    return digest.digest()


def read(source: SourceConfig, key: str) -> Iterator[Batch]:
    """Yield the rows of a source in batches, in an order that its fingerprint determines.

    Several files are read in the order of their hashes: sources of one fingerprint give the same rows in the same
    order, whatever the files are called.

    Raises:
        UserError: something is missing, broken, or out of reach; the line names it and the fix.
    """
    if source.kind is SourceKind.pydocs:
        from tometune.data import pydocs

        yield from batches(pydocs.conversations(source.filtered), "pydocs")
    elif source.kind is SourceKind.hub:
        yield from _hub(source, key)
    else:
        for file in sorted(files_of(source.path, f"{key}.path"), key=_digest):
            yield from read_file(file)


def _hub(source: SourceConfig, key: str) -> Iterator[Batch]:
    """Read a hub dataset: its parquet shards as they are, anything else through `datasets`."""
    from datasets.data_files import EmptyDatasetError
    from datasets.exceptions import DatasetsError

    assert source.id is not None
    commit = commit_of(f"{key}.id", source.id, source.revision, "dataset")
    log.info("%s: %s, revision %s is %s", key, source.id, source.revision, commit)
    with hub_errors(f"{key}.id", source.id):
        try:
            shards = shards_of(source, commit)
            files = fetch(source, commit, shards) if shards is not None else None
        except (ValueError, RuntimeError, DatasetsError, EmptyDatasetError) as error:
            raise _not_loaded(source, key, error) from error
    if shards is None or files is None:
        yield from _loaded(source, key, commit)
        return
    for path, file in zip(shards, files, strict=True):
        try:
            for batch in read_file(file):
                yield replace(batch, origin=f"{source.id}/{path}")
        except UserError as error:
            raise _not_loaded(source, key, ValueError(f"{path}{str(error).removeprefix(str(file))}")) from error


def _loaded(source: SourceConfig, key: str, commit: str) -> Iterator[Batch]:
    """Read a hub dataset through `datasets`, which caches it as memory-mapped Arrow."""
    import datasets
    from datasets.data_files import EmptyDatasetError
    from datasets.exceptions import DatasetsError

    assert source.id is not None
    with hub_errors(f"{key}.id", source.id):
        try:
            loaded = datasets.load_dataset(source.id, source.subset, split=source.split, revision=commit)
        except (ValueError, RuntimeError, DatasetsError, EmptyDatasetError) as error:
            raise _not_loaded(source, key, error) from error
    start = 0
    for table in loaded.with_format("arrow").iter(BATCH):
        for batch in table.combine_chunks().to_batches():
            yield Batch(batch, source.id, range(start, start + len(batch)))
            start += len(batch)


def _not_loaded(source: SourceConfig, key: str, error: Exception) -> Exception:
    """Return the line for an unknown subset or split, or for broken files; any other error as it is."""
    from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

    cause = error.__cause__ or error
    told_by_hub_errors = isinstance(error, DatasetNotFoundError)
    full_disk = isinstance(error, DatasetGenerationError) and isinstance(cause, OSError)
    if told_by_hub_errors or full_disk:
        return error
    reason = next(iter(str(cause).splitlines()), type(cause).__name__).rstrip(".")
    return UserError(f"{key}.id={source.id}: {reason}; check {key}.subset, {key}.split and the dataset's page")


ON_HUB = re.compile(r"hf://datasets/(?P<id>[^@]+)@(?P<commit>[^/]+)/(?P<path>.+)")
"""How `datasets` names a file of a hub dataset."""


def shards_of(source: SourceConfig, commit: str) -> list[str] | None:
    """Return the paths in the repository of the parquet files of a split; None if it is not made of such.

    They are noted in the hub's local cache, so that under HF_HUB_OFFLINE=1 what is there can be read.

    Args:
        source: hub dataset.
        commit: of it.

    Raises:
        Exception: those of `datasets.load_dataset_builder`.
    """
    import datasets
    from huggingface_hub import constants

    assert source.id is not None
    note = _note(source, commit)
    if note.is_file():
        noted: list[str] | None = json.loads(note.read_text(encoding="utf-8"))
        return noted
    if constants.HF_HUB_OFFLINE:
        return None
    builder = datasets.load_dataset_builder(source.id, source.subset, revision=commit)
    named = [str(file) for file in (builder.config.data_files or {}).get(source.split, [])]
    found = [ON_HUB.fullmatch(name) for name in named]
    paths = [match["path"] for match in found if match and match["path"].endswith(".parquet")]
    shards = paths if paths and len(paths) == len(named) else None
    with suppress(OSError):
        note.parent.mkdir(parents=True, exist_ok=True)
        write_json(note, shards)
    return shards


def fetch(source: SourceConfig, commit: str, shards: list[str]) -> list[Path]:
    """Return the shards as files of the hub's local cache; what is not there is fetched.

    Raises:
        Exception: those of `huggingface_hub.hf_hub_download`.
    """
    from huggingface_hub import hf_hub_download

    files = []
    for number, path in enumerate(shards, start=1):
        log.info("%s: shard %s of %s, %s", source.id, number, len(shards), path)
        files.append(Path(hf_hub_download(str(source.id), path, repo_type="dataset", revision=commit)))
    return files


def _note(source: SourceConfig, commit: str) -> Path:
    """Return the file in which the shards of a split are noted."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = repo_folder_name(repo_id=str(source.id), repo_type="dataset")
    name = re.sub(r"[^\w.-]", "_", f"{commit}-{source.subset}-{source.split}")
    return Path(constants.HF_HUB_CACHE) / folder / "shards" / f"{name}.json"
