"""Where the W&B report goes: always into the sweep's folder, and to the server where it can be had."""

import contextlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tometune.common.files import write_json
from tometune.reporting import panels
from tometune.reporting.report import Report
from tometune.tracking.wandb_setup import one_line  # before wandb, whose error reporting it turns off

# isort: split
import wandb

FILE = "wandb_report.json"
"""Name of the report's specification in the sweep's folder."""


def save(report: Report, tracking: Mapping[str, Any]) -> str:
    """Build the W&B report, write it to the sweep's folder and, if the run of the report is online, to the server.

    Args:
        report: what it is about.
        tracking: how the report's own run was tracked, as in run.json: mode, reason, path.

    Returns:
        One line that says where it is.
    """
    *entity, project, _ = tracking["path"].split("/")
    path = report.sweep.folder / FILE
    built = panels.build(report.table, project, "")
    before = _before(path)
    content = {"url": None, "place": None, **panels.spec(built), **before}
    write_json(path, content)
    if tracking["mode"] != "online":
        reason = tracking["reason"] or tracking["mode"]
        return f"{path}: the W&B report; not on a server ({reason}), the same command saves it when W&B is online"
    try:
        saved = _send(panels.build(report.table, project, entity[0]), before, f"{entity[0]}/{project}")
    except Exception as error:  # wandb-workspaces raises plain ones
        return f"{path}: the W&B report; {wandb.setup().settings.base_url} did not take it: {one_line(error)}"
    finally:
        wandb.teardown()
    write_json(path, {**content, **saved})
    return str(saved["url"])


def _send(built: Any, before: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Save a report on the server, in the place of the one that was saved there before."""
    if before.get("place") == place:
        built.id = before["id"]
    with contextlib.redirect_stderr(io.StringIO()):  # it prints where it is
        built.save()
    return {"id": built.id, "url": built.url, "place": place}


def _before(path: Path) -> dict[str, Any]:
    """Return where an earlier report was saved; empty where there was none, or no server had it."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {name: found[name] for name in ("id", "url", "place")} if found["url"] else {}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return {}
