"""Parquet shards of a hub dataset: which they are, and one after the other on this machine.

`datasets` says which files make up a split, huggingface_hub fetches them with a progress bar a shard. A connection that
breaks is taken up again at the byte where it broke; a program that is killed begins anew with the shard it was at.
"""

import json
import logging
import re
from contextlib import suppress
from pathlib import Path

from tometune.common.files import write_json
from tometune.config.data import SourceConfig

log = logging.getLogger(__name__)

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
