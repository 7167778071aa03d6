"""What the licences of a base and of the data ask of a model made of them."""

import json
import logging
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tometune.config.model import ModelConfig
from tometune.models import smollm2
from tometune.runs.finished import Finished, is_local

log = logging.getLogger(__name__)

LLAMA = re.compile(r"llama[-_ ]?3(?:[._](?P<minor>[123]))?(?![0-9]|[._][0-9])", re.IGNORECASE)
"""Ids of Meta's Llama 3, 3.1, 3.2 and 3.3, also written Llama-3_1."""

DISTILLED = {
    re.compile(r"deepseek-r1-distill-llama-8b", re.IGNORECASE): "3.1",
    re.compile(r"deepseek-r1-distill-llama-70b", re.IGNORECASE): "3.3",
}
"""DeepSeek's distils, MIT by themselves, and the Llama each is made of (https://github.com/deepseek-ai/DeepSeek-R1)."""

APACHE = re.compile(
    r"smollm[23]|qwen2\.5-(?:0\.5|1\.5|7|14|32)b|qwen3-|mistral-7b|deepseek-r1-distill-qwen", re.IGNORECASE
)
"""Ids of families that are published under Apache-2.0."""

PSF = "Python Software Foundation License Version 2 (https://docs.python.org/3/license.html)"

TEXTS = ("LICENSE*", "LICENCE*", "USE_POLICY*", "NOTICE*")
"""Files of a base that go along with what is made from it."""


@dataclass(frozen=True)
class Terms:
    """What one version of Llama's licence says differently from the others."""

    title: str
    built_with: str
    """Words to be shown; section 1.b.i."""

    prefix: str
    """Beginning of the name of every model made from it; section 1.b.i."""

    subject: str
    """What the notice of section 1.b.iii is about."""


TERMS = {
    "3": Terms("Meta Llama 3 Community License", "Built with Meta Llama 3", "Llama-3", "Meta Llama 3"),
    "3.1": Terms("Llama 3.1 Community License", "Built with Llama", "Llama", "Llama 3.1"),
    "3.2": Terms("Llama 3.2 Community License", "Built with Llama", "Llama", "Llama 3.2"),
    "3.3": Terms("Llama 3.3 Community License", "Built with Llama", "Llama", "Llama 3.3"),
}
"""By version: the texts at https://www.llama.com/llama3/license/, …/llama3_1/license/ and so on."""


@dataclass(frozen=True)
class Licence:
    """The licence of a base."""

    tag: str
    """The hub's name of it, e.g. `llama3.2`; `other` where it is not known here."""

    obligations: list[str]
    """What whoever passes the model on has to do."""

    notice: str | None = None
    """Text of the file NOTICE that has to go along."""

    prefix: str | None = None
    """What the name of a published model has to begin with."""

    built_with: str | None = None
    """What has to be shown beside it."""


def licence_of(*names: str) -> Licence:
    """Return the licence of a base by its names: its id, then what it says it is made of."""
    for name in names:
        version = _llama(name)
        if version is not None:
            return _of_llama(version)
        if APACHE.search(name):
            told = "Apache-2.0: the licence and the base's name go along, changes are stated (this card does)."
            return Licence("apache-2.0", [told])
    return Licence("other", [f"The licence of {names[0]} holds for this model too; it is on the base's own page."])


def _llama(name: str) -> str | None:
    """Return the version of Llama 3 that a model's name says it is, or is made of."""
    for pattern, version in DISTILLED.items():
        if pattern.search(name):
            return version
    match = LLAMA.search(name)
    return None if match is None else f"3.{match['minor']}" if match["minor"] else "3"


def _of_llama(version: str) -> Licence:
    """Return the licence of a version of Llama 3."""
    terms, pages = TERMS[version], f"https://www.llama.com/llama{version.replace('.', '_')}"
    return Licence(
        f"llama{version}",
        [
            f"{terms.built_with}. Whoever passes this model on shows “{terms.built_with}” prominently beside it.",
            f"A copy of the {terms.title} goes along: {pages}/license/",
            f"The name of every model made from it begins with “{terms.prefix}”.",
            "The file NOTICE is kept in every copy.",
            f"Use follows the Acceptable Use Policy: {pages}/use-policy/",
        ],
        f"{terms.subject} is licensed under the {terms.title}, Copyright © Meta Platforms, Inc. All Rights Reserved.",
        terms.prefix,
        terms.built_with,
    )


def licence_for(finished: Finished) -> Licence:
    """Return the licence of a run's base; a local folder is asked what it was made of."""
    return licence_of(finished.merged_into, finished.base_name, *_made_of(finished.base))


def _made_of(model: ModelConfig) -> Iterator[str]:
    """Yield the names that a local base's config and card give for what it is made of."""
    if not is_local(model):
        return
    folder = Path(model.id).expanduser()
    with suppress(OSError, ValueError, AttributeError):
        yield str(json.loads((folder / "config.json").read_text(encoding="utf-8")).get("_name_or_path", ""))
    with suppress(OSError, yaml.YAMLError, AttributeError, IndexError):
        named = yaml.safe_load((folder / "README.md").read_text(encoding="utf-8").split("---")[1]).get("base_model")
        yield from [str(name) for name in (named if isinstance(named, list) else [named])]


def licence_texts(finished: Finished) -> list[Path]:
    """Return the licence's own files beside the base that is merged into, which go along with what is made of it."""
    model = finished.base
    if is_local(model):
        folder = Path(model.id).expanduser()
    elif str(finished.record["model"]["revision"]).startswith(f"{smollm2.PACKAGE}=="):
        return []  # a package of weights alone, read without the hub
    else:
        from huggingface_hub import snapshot_download

        try:
            folder = Path(snapshot_download(model.id, revision=model.revision, allow_patterns=list(TEXTS)))
        except Exception as error:  # the hub is gone, or gated by now: the card names the text all the same
            log.warning("%s: its licence's text could not be had (%s)", model.id, type(error).__name__)
            return []
    return sorted({path for pattern in TEXTS for path in folder.glob(pattern) if path.is_file()})


def data_sources(finished: Finished) -> list[dict[str, Any]]:
    """Return what the mix was made of: role, name, licence or where to find it, and whether it is on the hub."""
    found = []
    for role, source in (("base", finished.config.data.base), ("pool", finished.config.data.pool)):
        if source is None:
            continue
        if source.kind.value == "hub":
            name, licence = str(source.id), f"on its page, https://huggingface.co/datasets/{source.id}"
        elif source.kind.value == "pydocs":
            name, licence = "documentation of the Python standard library", PSF
        else:
            name, licence = "files of the author", "as its author says; not known to this card"
        found.append({"role": role, "name": name, "licence": licence, "hub": source.kind.value == "hub"})
    return found
