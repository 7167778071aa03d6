"""The licence of a base model, and what it requires of a model made from it."""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import yaml

from tometune.config.model import ModelConfig
from tometune.models.source import is_local

LLAMA = re.compile(r"llama[-_ ]?3(?:[._](?P<minor>[123]))?(?![0-9]|[._][0-9])", re.IGNORECASE)
"""Ids of Meta's Llama 3, 3.1, 3.2 and 3.3, also written Llama-3_1."""

DISTILLED = {"deepseek-r1-distill-llama-8b": "3.1", "deepseek-r1-distill-llama-70b": "3.3"}
"""DeepSeek's distilled models, themselves MIT, and their Llama (https://github.com/deepseek-ai/DeepSeek-R1)."""

APACHE = re.compile(
    r"smollm[23]|qwen2\.5-(?:0\.5|1\.5|7|14|32)b|qwen3-|mistral-7b|deepseek-r1-distill-qwen", re.IGNORECASE
)
"""Ids of families that are published under Apache-2.0."""


@dataclass(frozen=True)
class Licence:
    """The licence of a base model; all but the tag is for Llama 3 (sections 1.b.i and 1.b.iii).

    Attributes:
        tag: the hub's name for it, e.g. `llama3.2`; `other` if it is not known here.
        subject: the licensed work in the words of the licence.
        name: has to be displayed as “Built with …”.
        prefix: required beginning of a published model's name.
    """

    tag: str
    subject: str = ""
    name: str = ""
    prefix: str = ""


def licence_of(*names: str) -> Licence:
    """Return the licence of a base by its names: its id first, then those of models it was made from."""
    for name in names:
        version = next((version for part, version in DISTILLED.items() if part in name.lower()), None)
        if version is None and (match := LLAMA.search(name)):
            version = f"3.{match['minor']}" if match["minor"] else "3"
        if version == "3":
            return Licence("llama3", "Meta Llama 3", "Meta Llama 3", "Llama-3")
        if version is not None:
            return Licence(f"llama{version}", f"Llama {version}", "Llama", "Llama")
        if APACHE.search(name):
            return Licence("apache-2.0")
    return Licence("other")


def made_from(model: ModelConfig) -> Iterator[str]:
    """Yield the models that a local base says it was made from, in its config and its card."""
    if not is_local(model):
        return
    folder = Path(model.id).expanduser()
    with suppress(OSError, ValueError, AttributeError):
        yield str(json.loads((folder / "config.json").read_text(encoding="utf-8")).get("_name_or_path", ""))
    with suppress(OSError, yaml.YAMLError, AttributeError, IndexError):
        named = yaml.safe_load((folder / "README.md").read_text(encoding="utf-8").split("---")[1]).get("base_model")
        yield from [str(name) for name in (named if isinstance(named, list) else [named])]
