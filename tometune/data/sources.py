"""Sources of rows: hub datasets, local files and the Python documentation.

For a hub dataset made of parquet shards, `datasets` lists the shards of a split and huggingface_hub downloads them. An
interrupted connection resumes at the byte where it broke; a killed program starts its current shard again.
"""

import glob
import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import lru_cache
from hashlib import file_digest, sha256
from itertools import takewhile
from pathlib import Path

from tometune.common.errors import UserError, some
from tometune.common.hub import commit_of, hub_errors, pinned
from tometune.config.data import SourceConfig, SourceKind
from tometune.data import pydocs
from tometune.data.local_files import BATCH, SUFFIXES, TRAIN, Batch, batches, kind_of, numbered, read_file, unreadable

log = logging.getLogger(__name__)

LONGEST_PATH = 200  # characters that an error shows of a path that the system rejects

FILES = "a JSONL, JSON, CSV, TSV, parquet or Arrow file, a folder of them, or a glob"

# What in a path below a folder or in a glob's match names a split; whatever names none belongs to train.
SPLITS = {
    split: re.compile(rf"(?:^|[/._-])(?:{names})(?:set|data)?s?\d*(?=[/._-])", re.IGNORECASE)
    for split, names in {
        "test": "test|testing|eval|evaluation|h[eo]ld[_-]?out",
        "validation": "valid|validation|validate|val|dev",
    }.items()
}
# Files that describe a dataset and hold no rows.
NO_ROWS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
MOST_NAMES = 10  # files that a line of the log names

# How `datasets` names a file of a hub dataset.
ON_HUB = re.compile(r"hf://datasets/(?P<id>[^@]+)@(?P<commit>[^/]+)/(?P<path>.+)")


def fingerprint(source: SourceConfig, key: str) -> str:
    """Identify the content of a source: files by sha256 and suffix, whatever their names; a hub dataset by commit.

    `key` is the source's key in the config, for errors, e.g. `data.base`. No rows are read.

    Raises:
        UserError: a file is missing.
    """
    if source.kind is SourceKind.pydocs:
        return f"pydocs-{pydocs.fingerprint()}-{'filtered' if source.filtered else 'all'}"
    if source.kind is SourceKind.hub:
        commit = pinned(f"{key}.id", str(source.id), source.revision, "dataset")
        return f"{source.id}@{commit}/{source.subset or 'default'}/{source.split}"
    digests = sorted(_digest(file) for file in files_of(source.path, f"{key}.path", source.split))
    split = "" if source.split == TRAIN else f"/{source.split}"  # one JSON file may hold several
    return f"files-{sha256(b''.join(digests)).hexdigest()[:20]}{split}"


def files_of(path: str | None, key: str, split: str = "train") -> list[Path]:
    """Return the files of a path: one, or those of a folder or a glob: of this split, or all if none is."""
    splits = _splits(path, key)
    return [file for file, named in splits.items() if named == split] or [*splits]


def _splits(path: str | None, key: str) -> dict[Path, str]:
    """Return the split of each file of a path."""
    if not path:
        raise UserError(f"{key}: is not set; set it to {FILES}")
    try:
        place = Path(path).expanduser()
        found = _matches(place)
    except (OSError, RuntimeError, ValueError) as error:  # no permission, name too long, no such home, null byte
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise UserError(f"{key}={path[:LONGEST_PATH]}: cannot be looked up ({reason}); check the path") from error
    if not found:
        no_file = f"has no file that ends in {', '.join(SUFFIXES)}" if place.is_dir() else "no such file"
        raise UserError(f"{key}={path}: {no_file}; name {FILES}")
    for file in found:
        if not kind_of(file):
            ends = f"the name must end in {', '.join(SUFFIXES)} (text also in .gz, .zst)"
            raise UserError(f"{key}={file}: cannot be read; {ends}")

    def split_of(file: Path) -> str:
        return next((split for split, named in SPLITS.items() if named.search(_below(file, path))), "train")

    return {file: split_of(file) for file in found}


def _below(file: Path, path: str) -> str:
    """Return the part of a file's name that is not written out in the path: below a folder, or a glob's own part."""
    base = Path(path).expanduser()
    if not base.exists():
        base = Path(*takewhile(lambda part: not glob.has_magic(part), base.parts))
    return file.relative_to(base).as_posix()


def _matches(path: Path) -> list[Path]:
    if path.is_dir():
        return [file for file in _visible(path) if kind_of(file) and _holds_rows(file)]
    matches = map(Path, glob.glob(str(path), recursive=True))  # noqa: PTH207 -- takes any pattern
    return [path] if path.exists() else [file for file in matches if not file.is_dir() and _holds_rows(file)]


def _visible(folder: Path) -> Iterator[Path]:
    for file in folder.rglob("*"):
        if "/." not in f"/{file.relative_to(folder).as_posix()}" and not file.is_dir():
            yield file


def _holds_rows(file: Path) -> bool:
    """Whether a file may hold rows. `datasets` puts its caches, with the same rows, into a `save_to_disk` folder."""
    state = file.with_name("state.json")  # lists the files of the dataset that was saved last
    if file.suffix == ".arrow" and state.is_file():
        with suppress(ValueError, KeyError, TypeError):  # not written by `datasets`
            listed = json.loads(state.read_text(encoding="utf-8"))["_data_files"]
            return file.name in {entry["filename"] for entry in listed}
    return file.name not in NO_ROWS


def _digest(file: Path) -> bytes:
    return content_digest(file) + kind_of(file).encode()  # the suffix decides how it is read


def content_digest(file: Path) -> bytes:
    """Return the sha256 of a file's content; hashed again only if its size or time changes."""
    try:
        found = file.stat()
        return _content_digest(file.resolve(), found.st_size, found.st_mtime_ns)
    except OSError as error:
        raise unreadable(file, error) from error


@lru_cache(4096)
def _content_digest(file: Path, _size: int, _changed: int) -> bytes:
    with file.open("rb") as content:
        return file_digest(content, "sha256").digest()


def read(source: SourceConfig, key: str) -> Iterator[Batch]:
    """Yield the rows of a source in batches. Files are read in the order of their hashes, so names do not matter."""
    if source.kind is SourceKind.pydocs:
        yield from batches(pydocs.conversations(source.filtered), "pydocs")
    elif source.kind is SourceKind.hub:
        yield from _hub(source, key)
    else:
        _log_choice(source, key)
        for file in ordered_files(source, key):
            yield from read_file(file, source.split)


def ordered_files(source: SourceConfig, key: str) -> list[Path]:
    """Return the files of a source in the order in which they are read; none if it does not consist of local files."""
    if source.kind is not SourceKind.files:
        return []
    return sorted(files_of(source.path, f"{key}.path", source.split), key=_digest)


def _log_choice(source: SourceConfig, key: str) -> None:
    """Name the files of a folder or glob that are not read, and those that are read although they are another split."""
    path = str(source.path)
    splits = _splits(path, f"{key}.path")
    others = [file for file, named in splits.items() if named != source.split]

    def names(of: list[Path]) -> str:
        return some(sorted(_below(file, path) for file in of), MOST_NAMES)

    about = f"{key}.path={path}"
    if 0 < len(others) < len(splits):
        log.info("%s: only %s is read, not %s; name a file to read it", about, source.split, names(others))
    elif held_out := [file for file in others if splits[file] != "train"]:
        log.warning("%s: no file is named as %s, so others are read: %s", about, source.split, names(held_out))
    folder = Path(path).expanduser()
    if unknown := [file for file in (_visible(folder) if folder.is_dir() else ()) if not kind_of(file)]:
        log.info("%s: files with other suffixes are not read: %s", about, names(unknown))


def _hub(source: SourceConfig, key: str) -> Iterator[Batch]:
    """Read a hub dataset: parquet shards directly, anything else through `datasets`, which caches it as Arrow."""
    import datasets
    from huggingface_hub import hf_hub_download

    assert source.id is not None
    commit = commit_of(f"{key}.id", source.id, source.revision, "dataset")
    log.info("%s: %s, revision %s is commit %s", key, source.id, source.revision, commit)
    with _load_errors(source, key):
        shards = _shards(source, commit)
        if shards is None:
            loaded = datasets.load_dataset(source.id, source.subset, split=source.split, revision=commit)
        files = []
        for number, path in enumerate(shards or (), start=1):  # missing ones are downloaded
            log.info("%s: shard %s of %s, %s", source.id, number, len(shards or ()), path)
            files.append(Path(hf_hub_download(source.id, path, repo_type="dataset", revision=commit)))
    if shards is None:
        tables = loaded.with_format("arrow").iter(BATCH)
        yield from numbered((part for table in tables for part in table.combine_chunks().to_batches()), source.id)
        return
    for path, file in zip(shards, files, strict=True):
        try:
            for batch in read_file(file):
                yield replace(batch, origin=f"{source.id}/{path}")
        except UserError as error:
            raise _load_error(source, key, f"{path}{str(error).removeprefix(str(file))}") from error


@contextmanager
def _load_errors(source: SourceConfig, key: str) -> Iterator[None]:
    """Turn an unknown subset or split, or broken files, into one line; other errors are the hub's own."""
    from datasets.data_files import EmptyDatasetError
    from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError, DatasetsError

    with hub_errors(f"{key}.id", str(source.id)):
        try:
            yield
        except (ValueError, RuntimeError, DatasetsError, EmptyDatasetError) as error:
            cause = error.__cause__ or error
            full_disk = isinstance(error, DatasetGenerationError) and isinstance(cause, OSError)
            if full_disk or isinstance(error, DatasetNotFoundError):  # `hub_errors` explains these
                raise
            reason = next(iter(str(cause).splitlines()), type(cause).__name__)
            raise _load_error(source, key, reason.rstrip(".")) from error


def _load_error(source: SourceConfig, key: str, reason: str) -> UserError:
    return UserError(f"{key}.id={source.id}: {reason}; check {key}.subset, {key}.split and the dataset's page")


def _shards(source: SourceConfig, commit: str) -> list[str] | None:
    """Return the parquet files of a split as paths in the repository; None if it is not made of parquet files."""
    import datasets

    builder = datasets.load_dataset_builder(str(source.id), source.subset, revision=commit)
    names = [str(file) for file in (builder.config.data_files or {}).get(source.split, [])]
    paths = [match["path"] for match in map(ON_HUB.fullmatch, names) if match and match["path"].endswith(".parquet")]
    return paths if paths and len(paths) == len(names) else None
