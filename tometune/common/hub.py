"""The model hub: which commit a revision means, and its errors in one line."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from tometune.common.cache import default_cache
from tometune.common.errors import UserError, chain_of
from tometune.common.files import write_text

GATED = "is gated; accept its terms on its page, then run `hf auth login` with a token that may read it"
NOT_FOUND = "no such repository on the hub (or it is private: `hf auth login`); for a local folder give its full path"
UNREACHABLE = "the model hub cannot be reached (HF_HUB_OFFLINE=1 uses only the local cache); without the hub:"


def quickstart() -> str:
    """Return the command of this verb that needs neither a GPU nor the hub."""
    typed = Path(sys.argv[0]).stem.rpartition(" ")[2]  # `tometune VERB`, or the file of `python -m tometune.VERB`
    verb = typed if typed in ("prepare", "evaluate", "chat") else "train"
    return f"tometune {verb} +experiment=quickstart"


def without_hub() -> str:
    """Return that the hub cannot be reached, and what works without it."""
    own = "with your own data add model=smollm2_135m, and data.pool.path=FILE for a pool"
    return f"{UNREACHABLE} {quickstart()}; {own}"


def is_commit(revision: str) -> bool:
    """Return whether a revision is a commit, whose content never changes."""
    return re.fullmatch("[0-9a-f]{40}", revision) is not None


def pinned(key: str, repository: str, revision: str, kind: str) -> str:
    """Return the revision itself if it is a commit (needs no hub), else the commit behind it; see `commit_of`."""
    return revision if is_commit(revision) else commit_of(key, repository, revision, kind)


@cache
def commit_of(key: str, repository: str, revision: str, kind: str) -> str:
    """Return the commit behind a revision, from one short request to the hub per process.

    Asking first avoids the libraries' retries when the hub is unreachable (about 25 s), and pins the content: if the
    branch moves, it is another cache entry and another run. With HF_HUB_OFFLINE=1 nothing is asked: it is the commit
    that we, or the hub's own cache, last saw behind the revision, or else the revision itself.

    `key` is the config key that names the repository, e.g. `model.id`; `kind` is `model` or `dataset`.

    Raises:
        UserError: there is no such repository or revision, or the hub cannot be reached.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.file_download import repo_folder_name

    with hub_errors(key, repository):
        name = repo_folder_name(repo_id=repository, repo_type=kind)
    pin = default_cache() / "pins" / name / revision
    if constants.HF_HUB_OFFLINE:
        seen = (pin, Path(constants.HF_HUB_CACHE) / name / "refs" / revision)
        return next((path.read_text(encoding="utf-8").strip() for path in seen if path.is_file()), revision)
    with hub_errors(key, repository):
        commit = HfApi().repo_info(repository, revision=revision, repo_type=kind, timeout=15).sha or revision
    with suppress(OSError):  # it is only needed offline
        pin.parent.mkdir(parents=True, exist_ok=True)
        write_text(pin, commit)
    return commit


@contextmanager
def hub_errors(key: str, repository: str) -> Iterator[None]:
    """Turn the hub's errors into a `UserError` that names the config key, the repository and the fix.

    Libraries wrap the hub's errors in their own (`OSError`, `ConnectionError`, …), so the whole chain is searched.
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


def _problem(error: BaseException) -> str | None:
    """Return the problem and its fix; None if it is none of the hub's errors."""
    import httpx
    from huggingface_hub import errors

    chain = chain_of(error)
    no_dataset = any(type(link).__name__ == "DatasetNotFoundError" for link in chain)  # `datasets` is slow to import
    if no_dataset and "gated" in str(error):
        return GATED
    unreachable = (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, httpx.TransportError, ConnectionError)
    problems: list[tuple[Any, str]] = [  # some are subclasses of later ones
        (errors.HFValidationError, "there is no such folder, and it is no hub id (user/name) either; check the path"),
        (errors.GatedRepoError, GATED),
        (errors.RevisionNotFoundError, "has no such revision; check the spelling of the branch, tag or commit"),
        (errors.RepositoryNotFoundError, NOT_FOUND),
        (unreachable, without_hub()),
        (errors.EntryNotFoundError, "lacks a required file; is it a repository of this kind?"),
    ]
    for kinds, problem in problems:
        if any(isinstance(link, kinds) for link in chain):
            return problem
    if no_dataset:
        return NOT_FOUND
    if any(isinstance(link, OSError) and "couldn't connect" in str(link) for link in chain):
        return without_hub()
    if any(isinstance(link, errors.HfHubHTTPError) for link in chain):
        return f"the model hub answered with an error ({str(error).splitlines()[0]}); try again later"
    return None
