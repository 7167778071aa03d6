"""The model card (card.md.jinja), and the files that the base's licence requires."""

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tometune.common.files import write_text
from tometune.models import smollm2
from tometune.models.licences import Licence, licence_of, made_from
from tometune.models.source import is_local
from tometune.runs.finished import Finished

log = logging.getLogger(__name__)

TEXTS = ("LICENSE*", "LICENCE*", "USE_POLICY*", "NOTICE*")
"""Files of a base that have to be passed on with models made from it."""

Gates = Sequence[tuple[str, Mapping[str, Any]]]
"""Name and gate.json of each export that a card describes: one, or one per quant."""


def write_card(finished: Finished, kind: str, gates: Gates, folder: Path, repository: str | None) -> None:
    """Write README.md for an export of format `kind`; without a repository, the card shows a placeholder for its id."""
    write_text(folder / "README.md", card(finished, kind, gates, repository or f"user/{finished.record['run_id']}"))


def card(finished: Finished, kind: str, gates: Gates, repository: str) -> str:
    """Return the text of the card."""
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
