"""What the licences of a base and of the data ask of a model made of them."""

import re
from dataclasses import dataclass
from typing import Any

from tometune.exporting.finished import Finished

LLAMA = re.compile(r"llama[-_ ]?3(?:\.(?P<minor>[123]))?(?![0-9.])", re.IGNORECASE)
"""Ids of Meta's Llama 3, 3.1, 3.2 and 3.3, which share the terms on names and notices."""

APACHE = re.compile(r"smollm2|qwen2\.5-(?:0\.5|1\.5|7|14|32)b|mistral-7b", re.IGNORECASE)
"""Ids of families that are published under Apache-2.0."""

PSF = "Python Software Foundation License Version 2 (https://docs.python.org/3/license.html)"


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


def licence_of(model_id: str) -> Licence:
    """Return the licence of a base by its id, as its family publishes it."""
    if match := LLAMA.search(model_id):
        version = f"3.{match['minor']}" if match["minor"] else "3"
        title = f"Llama {version} Community License"
        pages = f"https://www.llama.com/llama{version.replace('.', '_')}"
        return Licence(
            f"llama{version}",
            [
                "Built with Llama. Whoever passes this model on shows “Built with Llama” prominently beside it.",
                f"A copy of the {title} goes along: {pages}/license/",
                "The name of every model made from it begins with “Llama”.",
                "The file NOTICE is kept in every copy.",
                f"Use follows the Acceptable Use Policy: {pages}/use-policy/",
            ],
            f"Llama {version} is licensed under the {title}, Copyright © Meta Platforms, Inc. All Rights Reserved.",
            "Llama",
        )
    if APACHE.search(model_id):
        return Licence(
            "apache-2.0", ["Apache-2.0: the licence and the base's name go along, changes are stated (this card does)."]
        )
    return Licence("other", [f"The licence of {model_id} holds for this model too; it is on the base's own page."])


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
