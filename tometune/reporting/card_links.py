"""Links between the data cards of mixes and the runs and reports that use them; imports nothing slow."""

import html
import re
from collections.abc import Iterable, Mapping
from glob import escape
from pathlib import Path
from typing import Any

from tometune.common.files import write_text
from tometune.reporting.html import address

CARDS = "mixes"
"""Folder of the data cards below `paths.outputs`: many browsers may not read a hidden cache folder."""


def find_cards(outputs: Path, records: Iterable[Mapping[str, Any]]) -> dict[str, Path]:
    """Return the data cards of the mixes of these runs by name, as far as `prepare` has written them."""
    digests = dict.fromkeys(str(record["data"].get("digest"))[:8] for record in records)
    pages = [page for digest in digests for page in (outputs / CARDS).glob(f"*-{escape(digest)}/mix.html")]
    return {page.parent.name.rpartition("-")[0]: page for page in sorted(pages)}


def link_runs(page: Path, runs: Iterable[tuple[Path, Mapping[str, Any]]]) -> None:
    """Link a data card to the runs (folder, run.json) on its mix and to the reports of their sweeps."""
    links: dict[Path, str] = {}
    for folder, record in runs:
        if page.parent.name.endswith(f"-{str((record.get('data') or {}).get('digest'))[:8]}"):
            report = folder.parent / "report.html"
            sweep = _link(report, page, f"report {folder.parent.name}") if report.exists() else "runs"
            links[report] = f"{links[report]}, " if report in links else f"{sweep}: "
            links[report] += _link(folder, page, folder.name)
    if links:
        marks = re.compile(r"(?<=<!-- runs -->).*?(?=<!-- end of runs -->)", re.DOTALL)
        text = page.read_text(encoding="utf-8")
        write_text(page, marks.sub(lambda _: f"used by {'; '.join(links.values())}", text, count=1))


def _link(path: Path, page: Path, text: str) -> str:
    return f'<a href="{address(path, page.parent)}">{html.escape(text)}</a>'
