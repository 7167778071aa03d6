"""What goes wrong with the model hub, told in one line each."""

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from tometune.common.errors import UserError

HERE = "python -m tometune.train +experiment=quickstart"
"""The command that needs neither a GPU nor the hub."""

GATED = "is gated; accept its terms on its page, then `hf auth login` with a token that may read it"
NOT_FOUND = "no such repository on the hub (or it is private: `hf auth login`); a local folder needs its full path"
UNREACHABLE = f"the model hub cannot be reached (HF_HUB_OFFLINE=1 uses only the local cache); without the hub: {HERE}"


def is_commit(revision: str) -> bool:
    """Tell whether a revision is a commit, and so names one content for ever."""
    return re.fullmatch("[0-9a-f]{40}", revision) is not None


def pinned(key: str, repository: str, revision: str, kind: str) -> str:
    """Return the revision itself if it is a commit, which needs no hub, else the commit behind it; see `commit_of`."""
    return revision if is_commit(revision) else commit_of(key, repository, revision, kind)


@cache
def commit_of(key: str, repository: str, revision: str, kind: str) -> str:
    """Return the commit behind a revision, asked of the hub in one short request a process.

    Asking first keeps an unreachable hub from costing the libraries' retries (about 25 s), and pins what is read: a
    branch that moves gives other rows, another cache entry and another run. Under HF_HUB_OFFLINE=1 nothing is asked:
    it is the commit that the hub's local cache has for the revision, or the revision itself.

    Args:
        key: where the repository was named, e.g. `model.id`.
        repository: hub id.
        revision: branch, tag or commit.
        kind: `model` or `dataset`.

    Raises:
        UserError: there is no such repository or revision, or the hub cannot be reached.
    """
    from huggingface_hub import HfApi, constants

    with hub_errors(key, repository):
        seen = _seen(repository, revision, kind)
    if constants.HF_HUB_OFFLINE:
        return seen.read_text(encoding="utf-8").strip() if seen.is_file() else revision
    with hub_errors(key, repository):
        commit = HfApi().repo_info(repository, revision=revision, repo_type=kind, timeout=15).sha or revision
    with suppress(OSError):
        seen.parent.mkdir(parents=True, exist_ok=True)
        seen.write_text(commit, encoding="utf-8")
    return commit


def _seen(repository: str, revision: str, kind: str) -> Path:
    """Return the file in which the hub's local cache keeps the commit it last saw behind a revision."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    name = repo_folder_name(repo_id=repository, repo_type=kind)
    return Path(constants.HF_HUB_CACHE) / name / "refs" / revision


@contextmanager
def hub_errors(key: str, repository: str) -> Iterator[None]:
    """Turn the hub's errors into a `UserError` that names the config key, the repository and the fix.

    Libraries wrap the hub's errors in their own (`OSError`, `ConnectionError`, …), so the whole chain is searched.

    Args:
        key: where the repository was named, e.g. `model.id`.
        repository: hub id.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        problem = _problem(error)
        if problem is None:
            raise
        raise UserError(f"{key}={repository}: {problem}") from error


def _chain(error: BaseException) -> list[BaseException]:
    """Return an error and everything it came from, the last first."""
    found: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in found:
        found.append(current)
        current = current.__cause__ or current.__context__
    return found


def _problem(error: BaseException) -> str | None:
    """Return what is wrong and what to do; None if it is none of the hub's errors."""
    from huggingface_hub.errors import HfHubHTTPError

    chain = _chain(error)
    if _named(chain, "DatasetNotFoundError") and "gated" in str(error):
        return GATED
    for kinds, problem in _problems().items():
        if any(isinstance(link, kinds) for link in chain):
            return problem
    if _named(chain, "DatasetNotFoundError"):
        return NOT_FOUND
    if any(isinstance(link, OSError) and "couldn't connect" in str(link) for link in chain):
        return UNREACHABLE
    if any(isinstance(link, HfHubHTTPError) for link in chain):
        return f"the model hub answered with an error ({str(error).splitlines()[0]}); try again later"
    return None


def _problems() -> dict[tuple[type[BaseException], ...], str]:
    """Return the hub client's errors and what each means; of several in a chain the first named here counts."""
    import httpx
    from huggingface_hub import errors

    return {
        (errors.HFValidationError,): "there is no such folder, and it is no hub id (user/name) either; check the path",
        (errors.GatedRepoError,): GATED,
        (errors.RevisionNotFoundError,): "has no such revision; check the spelling of the branch, tag or commit",
        (errors.RepositoryNotFoundError,): NOT_FOUND,
        (
            errors.LocalEntryNotFoundError,
            errors.OfflineModeIsEnabled,
            httpx.TransportError,
            ConnectionError,
        ): UNREACHABLE,
        (errors.EntryNotFoundError,): "lacks a file that is needed; is it a repository of this kind?",
    }


def _named(chain: list[BaseException], name: str) -> bool:
    """Tell whether an error of that class is in the chain, without importing the library it is from."""
    return any(type(link).__name__ == name for link in chain)
