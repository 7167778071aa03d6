"""What is wrong with a file, judged by its suffix: missing, empty, cut short, overwritten or unreadable.

Serves checkpoints, finished runs and the cache. Imports no torch.
"""

import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError, safe_open

LISTING = "files.json"  # of a folder: the digest of each of its files, written last

INDEX = "model.safetensors.index.json"  # of a whole model whose weights are in several files

LARGE_FILE = 32 * 2**20  # bytes, above which a file is hashed by samples: reading 6 GB would take a minute
SAMPLES, SAMPLE_BYTES = 256, 64 * 1024


def defect(path: Path) -> str | None:
    """Return what is wrong with a file, in a few words, or None."""
    try:
        if not path.stat().st_size:
            return "is empty"
        with path.open("rb"):  # an error of its own: those of safetensors have no number
            if check := CHECKS.get(path.suffix):
                check(path)
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    except (ValueError, yaml.YAMLError, SafetensorError, zipfile.BadZipFile, NotImplementedError) as error:
        return f"is broken or truncated ({' '.join(str(error).split())[:80]})"
    return None


def _jsonl(path: Path) -> None:
    """Check that each line is JSON and that the last one is whole."""
    with path.open(encoding="utf-8", newline="\n") as lines:  # not splitlines(): it also splits at U+2028
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from None
            if not (isinstance(row, dict) and line.endswith("\n")):
                raise ValueError(f"line {number} is not whole")


def _yaml(path: Path) -> None:
    if not isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict):
        raise ValueError("not keys and values")


def _zip(path: Path) -> None:
    """Check the sums of a file that `torch.save` wrote."""
    with zipfile.ZipFile(path) as content:
        if (name := content.testzip()) is not None:
            raise ValueError(f"wrong checksum of {name}")


CHECKS: dict[str, Callable[[Path], object]] = {
    ".json": lambda path: json.loads(path.read_text(encoding="utf-8")),
    **{".jsonl": _jsonl, ".yaml": _yaml},
    ".safetensors": lambda path: safe_open(path, "np"),  # its header, and that the file is as long as that says
    **dict.fromkeys((".pt", ".pth", ".bin"), _zip),
}


def shards(folder: Path) -> list[str]:
    """Return the names of the weight files that the index of a whole model lists, in order.

    Raises:
        ValueError: it lists none.
    """
    try:
        content = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        return sorted(set(content["weight_map"].values()))
    except (KeyError, TypeError, AttributeError):
        raise ValueError("lists no weights") from None


def digest_of(path: Path) -> str:
    """Return a sha256 over size and content of a file, or samples of it."""
    digest = sha256(f"{path.stat().st_size}:".encode())
    for part in samples(path):
        digest.update(part)
    return digest.hexdigest()[:20]


def samples(path: Path) -> Iterator[bytes]:
    """Yield the content of a file, of a large one only samples."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= LARGE_FILE:
            yield file.read()
            return
        for sample in range(SAMPLES):
            file.seek((size - SAMPLE_BYTES) * sample // (SAMPLES - 1))
            yield file.read(SAMPLE_BYTES)


def list_files(folder: Path) -> None:
    """Write files.json of a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != LISTING)
    digests = {path.relative_to(folder).as_posix(): digest_of(path) for path in files}
    (folder / LISTING).write_text(json.dumps(digests, indent=1) + "\n", encoding="utf-8")


_whole: dict[Path, Any] = {}  # sizes and times of the files of folders that were found whole: they are hashed once


def changed_file(folder: Path) -> str | None:
    """Return the first file of a folder that is not as its files.json says, or None."""
    try:
        digests: Mapping[str, str] = json.loads((folder / LISTING).read_text(encoding="utf-8"))
        stats = {name: (folder / name).stat() for name in digests}
        state = [(name, stat.st_size, stat.st_mtime_ns, stat.st_ino) for name, stat in stats.items()]
        if not digests or _whole.get(folder) == state:
            return None if digests else LISTING
        for name, digest in digests.items():
            if digest_of(folder / name) != digest:
                return name
    except (OSError, ValueError, AttributeError) as error:
        return Path(error.filename).name if isinstance(error, OSError) and error.filename else LISTING
    _whole[folder] = state
    return None
