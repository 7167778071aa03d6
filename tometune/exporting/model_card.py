"""The model card (card.md.jinja), the licence of the base, and the files that it requires."""

import json
import logging
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tometune.common.files import write_text
from tometune.config.model import ModelConfig
from tometune.models import smollm2
from tometune.models.source import is_local
from tometune.runs.finished import Finished

log = logging.getLogger(__name__)

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
    """The licence of a base model; all but the tag is for Llama 3 (sections 1.b.i and 1.b.iii)."""

    tag: str  # the hub's name for it, e.g. `llama3.2`; `other` if it is not known here
    subject: str = ""  # the licensed work in the words of the licence
    name: str = ""  # has to be displayed as “Built with …”
    prefix: str = ""  # required beginning of a published model's name


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


CARD = "README.md"
TEXTS = ("LICENSE*", "LICENCE*", "USE_POLICY*", "NOTICE*")
"""Files of a base that have to be passed on with models made from it."""

Gates = Sequence[tuple[str, Mapping[str, Any]]]
"""Name and gate.json of each export that a card describes: one, or one per quant."""


def card(finished: Finished, kind: str, gates: Gates, repository: str) -> str:
    """Return the text of README.md for an export of format `kind`."""
    record, base = finished.record, finished.model if kind == "adapter" else finished.base
    mix, table = finished.folder / "mix.json", finished.folder.parent / "table.json"
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        autoescape=False,  # noqa: S701 -- Markdown, not HTML
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("card.md.jinja").render(
        repository=repository,
        kind=kind,
        gate=next((gate for _, gate in gates if not gate["passed"]), gates[0][1]),
        gates=gates,
        quants=[name.rpartition("-")[2].upper() for name, _ in gates],
        licence=licence_for(finished),
        base=finished.base_name,
        base_on_hub=None if is_local(base) else base.id,
        on_hub=not is_local(finished.model),
        merge_base=finished.merged_into if finished.base.id != finished.model.id and kind != "adapter" else None,
        package=smollm2.PACKAGE if _is_packaged(finished) else None,
        record=record,
        config=finished.config,
        sources=[source for source in (finished.config.data.base, finished.config.data.pool) if source is not None],
        date=finished.model.date_string,
        composition=json.loads(mix.read_text(encoding="utf-8")).get("sources", {}) if mix.exists() else {},
        limited=any(stage.get("limited") for stage in record["eval"].values()),
        table=json.loads(table.read_text(encoding="utf-8")) if table.exists() else None,
    )


def licence_for(finished: Finished) -> Licence:
    """Return the licence of a run's base; for a local folder, of the model that it says it was made from."""
    return licence_of(finished.merged_into, finished.base_name, *made_from(finished.base))


def write_licence(finished: Finished, folder: Path) -> None:
    """Write what the base's licence requires: the files that are published with the base, and NOTICE."""
    source = _base_folder(finished)
    for path in [path for pattern in TEXTS for path in source.glob(pattern)] if source is not None else []:
        if path.is_file():
            shutil.copyfile(path, folder / path.name)
    if subject := licence_for(finished).subject:
        title, rights = f"{subject} Community License", "Copyright © Meta Platforms, Inc. All Rights Reserved."
        write_text(folder / "NOTICE", f"{subject} is licensed under the {title}, {rights}\n")


def _base_folder(finished: Finished) -> Path | None:
    """Return a folder with the licence files of the base; None if there is none, and the card links to the text."""
    base = finished.base
    if is_local(base):
        return Path(base.id).expanduser()
    if _is_packaged(finished):
        return None  # a package of weights only; the hub is not asked
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(base.id, revision=base.revision, allow_patterns=list(TEXTS)))
    except Exception as error:  # the hub is unreachable or gated by now
        log.warning("%s: the text of its licence could not be downloaded (%s)", base.id, type(error).__name__)
        return None


def _is_packaged(finished: Finished) -> bool:
    """Return whether the base's weights come from SmolLM2's package."""
    return str(finished.record["model"]["revision"]).startswith(f"{smollm2.PACKAGE}==")
