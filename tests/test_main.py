"""`tometune VERB …` is `python -m tometune.VERB …`."""

import subprocess
import sys

import pytest

import tometune
from tometune.__main__ import main, verbs


@pytest.mark.parametrize(
    ("arguments", "status", "out", "error"),
    [
        *(
            ([*help_], 0, [f"  {name}" for name in verbs()] + [*verbs().values()], "")
            for help_ in ([], ["--help"], ["-h"])
        ),
        (["--version"], 0, [f"tometune {tometune.__version__}\n"], ""),
        (["trian"], 2, [], "trian: no such verb; did you mean train?\n"),
        (["zzz"], 2, [], "zzz: no such verb; one of "),
    ],
)
def test_what_the_command_says(monkeypatch, capsys, arguments, status, out, error):
    monkeypatch.setattr(sys, "argv", ["tometune", *arguments])
    try:
        main()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    printed = capsys.readouterr()
    assert code == status
    assert all(text in printed.out for text in out)
    assert printed.err.startswith(error)
    assert bool(printed.err) == bool(error)


def test_the_verbs():
    assert set(verbs()) == {"chat", "evaluate", "export", "prepare", "report", "train"}


def test_both_ways_are_the_same(tmp_path):
    first, second = (
        subprocess.run([sys.executable, "-m", *way, "data=mix_30k"], cwd=tmp_path, capture_output=True, text=True)
        for way in (["tometune", "train"], ["tometune.train"])
    )
    assert (first.returncode, first.stdout, first.stderr) == (second.returncode, second.stdout, second.stderr)
    assert first.returncode == 2
