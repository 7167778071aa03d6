"""Licences of base models, and what they require of a model made from them."""

import json
import logging
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import yaml

from tometune.config.model import ModelConfig
from tometune.models import smollm2
from tometune.runs.finished import Finished, is_local

log = logging.getLogger(__name__)

LLAMA = re.compile(r"llama[-_ ]?3(?:[._](?P<minor>[123]))?(?![0-9]|[._][0-9])", re.IGNORECASE)
"""Ids of Meta's Llama 3, 3.1, 3.2 and 3.3, also written Llama-3_1."""

DISTILLED = {"deepseek-r1-distill-llama-8b": "3.1", "deepseek-r1-distill-llama-70b": "3.3"}
"""DeepSeek's distilled models, themselves MIT, and their Llama (https://github.com/deepseek-ai/DeepSeek-R1)."""

APACHE = re.compile(
    r"smollm[23]|qwen2\.5-(?:0\.5|1\.5|7|14|32)b|qwen3-|mistral-7b|deepseek-r1-distill-qwen", re.IGNORECASE
)
"""Ids of families that are published under Apache-2.0."""

TEXTS = ("LICENSE*", "LICENCE*", "USE_POLICY*", "NOTICE*")
"""Files of a base that have to be passed on with models made from it."""


@dataclass(frozen=True)
class Licence:
    """The licence of a base model.

    Attributes:
        tag: the hub's name for it, e.g. `llama3.2`; `other` if it is not known here.
        obligations: duties of everyone who passes the model on, one sentence each.
        notice: text of the file NOTICE that has to be included.
        prefix: required beginning of a published model's name.
        built_with: words that have to be displayed.
    """

    tag: str
    obligations: list[str]
    notice: str | None = None
    prefix: str | None = None
    built_with: str | None = None


def licence_for(finished: Finished) -> Licence:
    """Return the licence of a run's base; for a local folder, of the model that it says it was made from."""
    return licence_of(finished.merged_into, finished.base_name, *_made_from(finished.base))


def licence_of(*names: str) -> Licence:
    """Return the licence of a base by its names: its id first, then those of models it was made from."""
    for name in names:
        version = next((version for part, version in DISTILLED.items() if part in name.lower()), None)
        if version is None and (match := LLAMA.search(name)):
            version = f"3.{match['minor']}" if match["minor"] else "3"
        if version is not None:
            return _llama(version)
        if APACHE.search(name):
            duty = "Apache-2.0: pass on the licence and the base's name, and state changes (this card does)."
            return Licence("apache-2.0", [duty])
    return Licence("other", [f"The licence of {names[0]} applies to this model too; see the base's own page."])


def _llama(version: str) -> Licence:
    """Return the licence of Llama 3 (sections 1.b.i and 1.b.iii, which later versions word differently)."""
    name, subject, prefix = (
        ("Meta Llama 3", "Meta Llama 3", "Llama-3") if version == "3" else ("Llama", f"Llama {version}", "Llama")
    )
    title, page = f"{subject} Community License", f"https://www.llama.com/llama{version.replace('.', '_')}"
    return Licence(
        f"llama{version}",
        [
            f"Display “Built with {name}” prominently wherever you pass this model on.",
            f"Include a copy of the {title}: {page}/license/",
            f"Begin the name of every model made from it with “{prefix}”.",
            "Keep the file NOTICE in every copy.",
            f"Follow the Acceptable Use Policy: {page}/use-policy/",
        ],
        f"{subject} is licensed under the {title}, Copyright © Meta Platforms, Inc. All Rights Reserved.",
        prefix,
        f"Built with {name}",
    )


def _made_from(model: ModelConfig) -> Iterator[str]:
    """Yield the models that a local base says it was made from, in its config and its card."""
    if not is_local(model):
        return
    folder = Path(model.id).expanduser()
    with suppress(OSError, ValueError, AttributeError):
        yield str(json.loads((folder / "config.json").read_text(encoding="utf-8")).get("_name_or_path", ""))
    with suppress(OSError, yaml.YAMLError, AttributeError, IndexError):
        named = yaml.safe_load((folder / "README.md").read_text(encoding="utf-8").split("---")[1]).get("base_model")
        yield from [str(name) for name in (named if isinstance(named, list) else [named])]


def licence_texts(finished: Finished) -> list[Path]:
    """Return the licence files that are published with the base that is merged into."""
    model = finished.base
    if is_local(model):
        folder = Path(model.id).expanduser()
    elif str(finished.record["model"]["revision"]).startswith(f"{smollm2.PACKAGE}=="):
        return []  # a package of weights only; the hub is not asked
    else:
        from huggingface_hub import snapshot_download

        try:
            folder = Path(snapshot_download(model.id, revision=model.revision, allow_patterns=list(TEXTS)))
        except Exception as error:  # the hub is unreachable or gated by now; the card links to the text anyway
            log.warning("%s: the text of its licence could not be downloaded (%s)", model.id, type(error).__name__)
            return []
    return sorted({path for pattern in TEXTS for path in folder.glob(pattern) if path.is_file()})
