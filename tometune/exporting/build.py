"""Makes the exports of a run: writes each format, checks it at the gate, and moves it to its folder."""

import json
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from hashlib import file_digest
from importlib import metadata
from pathlib import Path
from time import perf_counter
from typing import Any

from safetensors import SafetensorError

from tometune.common.errors import UserError
from tometune.common.files import SaveError, disk_errors, temporary_path, write_json, write_text
from tometune.common.seeding import use_deterministic_kernels
from tometune.exporting.formats import PACKAGES, Export, Writer
from tometune.exporting.gate import GateError, Reference, compare, lost_change
from tometune.exporting.model_card import CARD, card, write_licence
from tometune.exporting.reference import References
from tometune.models.llama_cpp import LlamaError
from tometune.models.machine import free_memory
from tometune.models.source import fingerprint, locate
from tometune.models.tokenizer import load_tokenizer
from tometune.runs.finished import Finished
from tometune.runs.run import check_writable, now

log = logging.getLogger(__name__)

Gate = dict[str, Any]
"""The content of a gate.json, or a part of it."""

SCHEMA = 4  # version of gate.json's layout, and of what an export holds
GATE = "gate.json"  # the record of an export, which lists its other files


def check_folders(finished: Finished, folder: Path, exports: Sequence[Export]) -> None:
    """Raise a `UserError` if a folder cannot be written, or exports would replace what is no export of this run."""
    check_writable(folder, "set export.folder to a folder that can")
    inside, own = folder.resolve(), finished.folder.resolve()
    if (inside == own or own in inside.parents) and own / "export" not in (inside, *inside.parents):
        raise UserError(f"export.folder={folder}: inside the run, among its own files; leave it out ({own / 'export'})")
    for export in exports:
        check_folder(export.folder, finished.record["run_id"])
        check_folder(failed(export.folder), finished.record["run_id"])


def check_folder(target: Path, run_id: str) -> None:
    """Raise a `UserError` unless a folder does not exist, is empty, or holds an export of the run."""
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        why = "is not a folder"
    elif gate := read_gate(target):
        if gate["run_id"] == run_id:
            return
        why = f"holds an export of another run, {gate['run_id']}"
    elif not target.exists() or not any(target.iterdir()):
        return
    else:
        why = "is not an export (no gate.json)"
    raise UserError(f"{target}: {why}, and would be overwritten; move it away or set export.folder")


class Builder:
    """Makes exports of one run; what several of them need is loaded when the first one needs it."""

    def __init__(self, finished: Finished, cache: Path, folder: Path, answer: bool = True) -> None:
        use_deterministic_kernels()  # the checks give the same figures again
        self.finished, self.folder, self.limits = finished, folder, finished.config.export
        self.tokenizer = load_tokenizer(locate(finished.model, cache, weights=False))
        self.references = References(finished, cache, self.tokenizer, answer)
        self.writer = Writer(finished, cache, self.tokenizer, folder)

    def make_all(self, exports: Sequence[Export], report: Callable[[Gate], None]) -> dict[str, Gate]:
        """Make exports and return their gate.json by name; `report` gets each as soon as it is made.

        Raises:
            GateError: one or more failed; all of them were tried.
        """
        gates: dict[str, Gate] = {}
        with self.writer.temporary:
            for export in exports:
                gates[export.name] = self.make(export)
                report(gates[export.name])
        problems = {name: gate["problems"][0] for name, gate in gates.items() if not gate["passed"]}
        if problems:
            raise GateError("; ".join(f"{name} failed its checks: {problem}" for name, problem in problems.items()))
        return gates

    def make(self, export: Export) -> Gate:
        """Make an export, unless it exists and passed, and return its gate.json with its folder."""
        key, gate = self._key(export), read_gate(export.folder)
        if gate is not None and gate["passed"] and gate.get("key") == key:
            if gate["files"] == list_files(export.folder):
                log.info("%s: exists and passed its checks on %s", export.folder, gate["finished"])
                return gate | {"folder": str(export.folder)}
            log.warning("%s: its files changed since its checks; making it again", export.folder)
        reference = self.references.of(export.format)  # before anything is written: the base may be gone
        free_memory()
        self.folder.mkdir(parents=True, exist_ok=True)
        with disk_errors(self.folder), temporary_path(export.folder, folder=True) as folder:
            gate = {
                "schema": SCHEMA,
                "run_id": self.finished.record["run_id"],
                "format": export.format,
                "quant": export.quant,
                "reference": {"model": reference.base, "dtype": reference.dtype, "tuned": reference.tuned},
                **self._write_and_check(export, folder, reference),
                "key": key,
                "finished": now(),
            }
            write_licence(self.finished, folder)
            placeholder = f"user/{gate['run_id']}"
            write_text(folder / CARD, card(self.finished, export.format, [(export.name, gate)], placeholder))
            gate["files"] = list_files(folder)
            write_json(folder / GATE, gate)
            place = move_to(export.folder, folder, gate)
        return gate | {"folder": str(place)}

    def _write_and_check(self, export: Export, folder: Path, reference: Reference) -> Gate:
        """Write an export and compare it with the tuned model; an engine that crashes fails this export only."""
        name, dtype, checks = PACKAGES[export.format][0], None, dict[str, Any]()
        start = written = perf_counter()
        try:
            with disk_errors(self.folder):
                dtype = self.writer.write(export, folder, reference)
            engine = self.writer.load(export, folder, reference)
            name, written = engine.name, perf_counter()
            checks, problems = compare(engine, export.kind, reference, self.tokenizer.bos_token_id, self.limits)
            del engine
            if (change := self.writer.change(export, folder)) is not None:
                checks["change"] = change
                problems = lost_change(change, self.limits.min_share) + problems
        except (LlamaError, SafetensorError, OSError, RuntimeError, ValueError) as error:
            if isinstance(error, SaveError):
                raise
            log.debug("%s: the engine crashed", export.name, exc_info=True)
            text = " ".join(str(error).split())[:300]
            problems = [f"engine: {text if isinstance(error, LlamaError) else f'{type(error).__name__}: {text}'}"]
        finally:
            free_memory()
        seconds = {"export": round(written - start, 1), "gate": round(perf_counter() - written, 1)}
        judged = {"passed": not problems, "problems": problems, "checks": checks}
        return {**judged, "engine": name, "dtype": dtype, "seconds": seconds}

    def _key(self, export: Export) -> dict[str, Any]:
        """Return everything that an export and its checks depend on."""
        run = self.finished.folder
        read = [run / "run.json", run / "mix.json", *sorted((run / "eval" / "tuned").glob("*.jsonl"))]
        return {
            "schema": SCHEMA,
            "adapter": self.finished.digest(),
            "base": fingerprint(self.finished.base),
            "trained_on": fingerprint(self.finished.model),
            "read": {str(path.relative_to(run)): sha256_of(path) for path in read if path.exists()},
            "settings": asdict(replace(self.limits, folder=None)),
            "versions": {name: metadata.version(name) for name in [*PACKAGES["adapter"], *PACKAGES[export.format]]},
        }


def list_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Return size in bytes and sha256 of each file of an export except gate.json."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / GATE)
    found = {path.relative_to(folder).as_posix(): path for path in paths}
    return {name: {"size": path.stat().st_size, "sha256": sha256_of(path)} for name, path in found.items()}


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file, in hex."""
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def read_gate(folder: Path) -> Gate | None:
    """Return an export's gate.json, of whatever version; None if the folder has none."""
    try:
        gate: Gate = json.loads((folder / GATE).read_text(encoding="utf-8"))
        return gate if {"run_id", "format", "passed"} <= gate.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def failed(target: Path) -> Path:
    """Return where a failed export goes if a passing one exists."""
    return target.with_name(target.name + "-failed")


def move_to(target: Path, new: Path, gate: Gate) -> Path:
    """Move a finished export to its folder and return that. A failed one goes to NAME-failed if a passing one exists.

    Raises:
        UserError: the target is not an export of the run.
    """
    existing = read_gate(target)
    place = failed(target) if existing and existing["passed"] and not gate["passed"] else target
    check_folder(place, gate["run_id"])
    with temporary_path(place, folder=True) as old:  # deleted last
        if place.exists():
            place.replace(old)
        new.replace(place)
    if gate["passed"] and read_gate(failed(target)):
        shutil.rmtree(failed(target), ignore_errors=True)
    return place
