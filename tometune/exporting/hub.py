"""Publishing: a repository a format on the model hub, filled in one commit, gone on with where it was broken off."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tometune.common.errors import UserError
from tometune.common.hub import hub_errors
from tometune.exporting.licences import licence_for
from tometune.runs.finished import Finished, is_local

log = logging.getLogger(__name__)

CARD = "README.md"

ENDINGS = {"adapter": "-adapter", "merged_16bit": "", "gguf": "-GGUF"}
"""What is added to a repository's name where several formats are pushed: one that holds two loads as neither."""


def repositories(push_to: str, formats: Sequence[str]) -> dict[str, str]:
    """Return the repository of each format: the one that was named, or one a format."""
    if len(formats) == 1:
        return {formats[0]: push_to}
    return {kind: push_to + ENDINGS[kind] for kind in formats}


def check_push(finished: Finished, push_to: str, formats: Sequence[str], private: bool) -> None:
    """Check, before anything is exported, that it may be published under this name and that the token may do so.

    Raises:
        UserError: it may not, or the base's licence asks for another name, or nobody could load the adapter, or what
            is to be private would be seen by all.
    """
    from huggingface_hub import get_token

    prefix = licence_for(finished).prefix
    user, _, name = push_to.partition("/")
    if prefix is not None and not name.startswith(prefix):
        raise UserError(
            f"push_to={push_to}: the licence of {finished.merged_into} asks for a name that begins with {prefix}; e.g. "
            f"push_to={user}/{prefix}-{name}"
        )
    if "adapter" in formats and is_local(finished.model):
        raise UserError(
            f"push_to={push_to}: the adapter's base is a folder of this machine ({finished.model.id}), which nobody "
            "else can load; push format=merged_16bit or gguf"
        )
    if not get_token():
        raise UserError("push_to: needs a token that may write; set HF_TOKEN, or run: hf auth login")
    for repository in repositories(push_to, formats).values():
        check_repository(repository, private)


def check_repository(repository: str, private: bool) -> None:
    """Check that the token may write to a repository, by making it where it is not there yet.

    Raises:
        UserError: the token may not, or the repository is public while `private` is asked for.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    api = HfApi()
    with upload_errors(repository, begun=False):
        who = api.whoami()
        token = who.get("auth", {}).get("accessToken", {})
        mine = {who["name"], *(each["name"] for each in who.get("orgs", []))}
        if token.get("role") == "read" or repository.partition("/")[0] not in mine:
            raise UserError(
                f"push_to={repository}: the token is {who['name']}'s and may not write there; make one with write "
                "access (hf auth login), or name a repository of your own"
            )
        try:
            found = api.repo_info(repository)
        except RepositoryNotFoundError:
            api.create_repo(repository, private=private)
            return
    if private and not found.private:
        raise UserError(
            f"push_to={repository}: is there already and public, so everybody would see this model; set private=false "
            "if that is meant, or name another"
        )


def push(folders: Sequence[Path], card: Path, repository: str, private: bool) -> str:
    """Upload folders into a repository in one commit and return its address.

    The hub keeps each large file as soon as it is whole, and asks only for those it has not: after an upload that
    broke off, the same command goes on with the file it was at. The repository shows all files or none.

    Args:
        folders: their files go to the top of the repository, see `files_of`.
        card: its README.md, in the place of the folders' own.
        repository: hub id.
        private: whether a repository that is created can be seen by its owner alone; one that is there stays as it is.

    Raises:
        UserError: the hub cannot be reached, or does not allow it.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi()
    files = files_of(folders) | {card.name: card}
    operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in files.items()]
    with upload_errors(repository, begun=False):
        url = api.create_repo(repository, private=private, exist_ok=True)
    log.info("uploading %d files to %s", len(files), repository)
    with upload_errors(repository, begun=True):
        api.create_commit(repository, operations, commit_message="Upload by tometune")
    return str(url)


def files_of(folders: Sequence[Path]) -> dict[str, Path]:
    """Return the files by their name in the repository.

    Their cards are left out. What several folders have alike is there once; what is a folder's own under the same name,
    as gate.json and the Modelfile of each quant, carries the folder's last word from the second on: `gate-q4_k_m.json`.
    """
    files: dict[str, Path] = {}
    for folder in folders:
        for path in sorted(file for file in folder.iterdir() if file.is_file() and file.name != CARD):
            name = path.name
            if name in files and files[name].read_bytes() != path.read_bytes():
                name = f"{path.stem}-{folder.name.rpartition('-')[2]}{path.suffix}"
            files.setdefault(name, path)
    return files


@contextmanager
def upload_errors(repository: str, begun: bool) -> Iterator[None]:
    """Turn what the hub says to an upload into a `UserError` with the fix; `begun` once files are on their way."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        with hub_errors("push_to", repository):
            yield
    except UserError as error:
        cause = error.__cause__
        status = cause.response.status_code if isinstance(cause, HfHubHTTPError) else None
        if status in (401, 403):
            raise UserError(
                f"push_to={repository}: the token may not write there; make one with write access (hf auth login)"
            ) from error
        if begun and (status is None or status >= 500):
            raise UserError(
                f"push_to={repository}: the upload broke off; the same command goes on with the file it was at"
            ) from error
        raise
