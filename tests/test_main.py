"""`tometune VERB …` is `python -m tometune.VERB …`."""

import subprocess
import sys

import pytest

import tometune
from tometune.__main__ import main, verbs


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["tometune", *arguments])
    status = 0
    try:
        main()
    except SystemExit as stop:
        status = int(stop.code or 0)
    return status, *capsys.readouterr()


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_overview_lists_the_verbs(monkeypatch, capsys, arguments):
    status, out, _ = run(monkeypatch, capsys, *arguments)
    assert status == 0
    assert set(verbs()) == {"chat", "evaluate", "export", "prepare", "report", "train"}
    assert all(f"  {name}" in out and line in out for name, line in verbs().items())


def test_version(monkeypatch, capsys):
    assert run(monkeypatch, capsys, "--version") == (0, f"tometune {tometune.__version__}\n", "")


def test_unknown_verb(monkeypatch, capsys):
    assert run(monkeypatch, capsys, "trian") == (2, "", "trian: no such verb; did you mean train?\n")
    status, _, error = run(monkeypatch, capsys, "zzz")
    assert status == 2
    assert error.startswith("zzz: no such verb; one of ")


def test_both_ways_are_the_same(tmp_path):
    ways = [["tometune", "train"], ["tometune.train"]]
    first, second = (
        subprocess.run([sys.executable, "-m", *way, "data=mix_30k"], cwd=tmp_path, capture_output=True, text=True)
        for way in ways
    )
    assert (first.returncode, first.stdout, first.stderr) == (second.returncode, second.stdout, second.stderr)
