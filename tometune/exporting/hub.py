"""Publishing: one repository per format on the model hub, each filled in one commit."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from tometune.common.errors import UserError
from tometune.common.hub import hub_errors
from tometune.exporting.model_card import CARD, card, licence_for
from tometune.models.source import is_local
from tometune.runs.finished import Finished

log = logging.getLogger(__name__)

WEIGHTS = ("*.safetensors", "*.index.json", "adapter_*")
"""Names of files that transformers would load instead of those of a new upload."""


def repositories(push_to: str, formats: Sequence[str]) -> dict[str, str]:
    """Return the repository of each format: several, because libraries cannot load one that holds two formats."""
    endings = {"adapter": "-adapter", "merged_16bit": "", "gguf": "-GGUF"}
    return {kind: push_to + (endings[kind] if len(formats) > 1 else "") for kind in formats}


def check_push(finished: Finished, push_to: str, formats: Sequence[str], private: bool) -> None:
    """Raise a `UserError` if the licence, the adapter's base or the token forbid a repository, or all could see it."""
    from huggingface_hub import get_token

    prefix = licence_for(finished).prefix
    user, _, name = push_to.partition("/")
    if not name.startswith(prefix):
        raise UserError(
            f"push_to={push_to}: the licence of {finished.merged_into} requires a name that begins with {prefix}; e.g. "
            f"push_to={user}/{prefix}-{name}"
        )
    if "adapter" in formats and is_local(finished.model):
        raise UserError(
            f"push_to={push_to}: the adapter's base is a folder on this machine ({finished.model.id}), which nobody "
            "else can load; push format=merged_16bit or gguf"
        )
    if not get_token():
        raise UserError("push_to: needs a token with write access; set HF_TOKEN, or run: hf auth login")
    for repository in repositories(push_to, formats).values():
        check_repository(repository, private)


def check_repository(repository: str, private: bool) -> None:
    """Check that the token may write to a repository, which is created if it does not exist; see `check_push`."""
    from huggingface_hub import HfApi

    api = HfApi()
    with _upload_errors(repository):
        who = api.whoami()
        role = who.get("auth", {}).get("accessToken", {}).get("role")
        owners = {who["name"], *(organisation["name"] for organisation in who.get("orgs", []))}
        if role == "read" or repository.partition("/")[0] not in owners:
            raise UserError(
                f"push_to={repository}: the token of {who['name']} may not write there; make one with write access "
                "(hf auth login), or name a repository of your own"
            )
        api.create_repo(repository, private=private, exist_ok=True)
        public = private and not api.repo_info(repository).private
    if public:
        raise UserError(
            f"push_to={repository}: exists and is public, so everybody would see this model; set private=false if you "
            "want that, or name another"
        )


def publish(finished: Finished, gates: Mapping[str, Mapping[str, Any]], push_to: str, private: bool) -> None:
    """Upload each format into its repository with a card that names it, and print its address; `gates` have folders."""
    formats = list(dict.fromkeys(gate["format"] for gate in gates.values()))
    for kind, repository in repositories(push_to, formats).items():
        same = [(name, gate) for name, gate in gates.items() if gate["format"] == kind]
        folders = [Path(gate["folder"]) for _, gate in same]
        print(f"{kind}: {push(folders, card(finished, kind, same, repository), repository, private)}")


def push(folders: Sequence[Path], text: str, repository: str, private: bool) -> str:
    """Upload the files of folders, with the text of one card, to the top of a repository; return its address.

    It is one commit, so the repository shows all files or none. If it has weights for transformers, it also deletes
    those of an earlier upload. The hub keeps each large file that arrived completely, so repeating the command after an
    interrupted upload sends only the others. An existing repository keeps its visibility.

    Raises:
        UserError: the hub cannot be reached, or refuses.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    files: dict[str, Path | bytes] = {**files_of(folders), CARD: text.encode()}
    operations: list[Any] = [CommitOperationAdd(name, content) for name, content in files.items()]
    log.info("uploading %d files to %s", len(files), repository)
    with _upload_errors(repository, begun=True):
        url = HfApi().create_repo(repository, private=private, exist_ok=True)
        loaded = any(fnmatch(name, WEIGHTS[0]) for name in files)  # a GGUF replaces nothing but one of its name
        for name in HfApi().list_repo_files(repository):
            if loaded and name not in files and any(fnmatch(name, pattern) for pattern in WEIGHTS):
                operations.append(CommitOperationDelete(name))
        HfApi().create_commit(repository, operations, commit_message="Upload by tometune")
    return str(url)


def files_of(folders: Sequence[Path]) -> dict[str, Path]:
    """Return the files of folders and of folders in them, without their cards, by their names in the repository.

    Equal files are uploaded once. Others of the same name, such as the gate.json of each quant, get the last part of
    their folder's name from the second folder on: `gate-q4_k_m.json`.
    """
    files: dict[str, Path] = {}
    for folder in folders:
        for path in sorted(file for file in folder.rglob("*") if file.is_file() and file != folder / CARD):
            name = path.relative_to(folder).as_posix()
            if name in files and files[name].read_bytes() != path.read_bytes():
                name = f"{name.removesuffix(path.suffix)}-{folder.name.rpartition('-')[2]}{path.suffix}"
            files.setdefault(name, path)
    return files


@contextmanager
def _upload_errors(repository: str, begun: bool = False) -> Iterator[None]:
    """Turn errors of the hub into a `UserError` with the fix; `begun` once files are being sent."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        with hub_errors("push_to", repository):
            yield
    except UserError as error:
        cause = error.__cause__
        status = cause.response.status_code if isinstance(cause, HfHubHTTPError) else None
        if status in (401, 403):
            problem = "the token may not write there; make one with write access (hf auth login)"
        elif begun and (status is None or status >= 500):
            problem = "the upload was interrupted; run the same command again to resume it"
        else:
            raise
        raise UserError(f"push_to={repository}: {problem}") from error
