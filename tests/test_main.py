"""`tometune VERB …` is `python -m tometune.VERB …`."""

import os
import subprocess
import sys
from pathlib import Path

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
    assert all(" ".join(text.split()) in " ".join(printed.out.split()) for text in out)
    assert max(map(len, [*printed.out.splitlines(), ""])) <= 80
    assert printed.err.startswith(error)
    assert bool(printed.err) == bool(error)


def test_the_verbs():
    assert set(verbs()) == {"chat", "doctor", "evaluate", "export", "prepare", "report", "train"}


def test_bash_completes_verbs_keys_and_options(tmp_path):
    """With the function that the documented line installs, called as bash calls it."""
    (tmp_path / "tometune").write_text(f'#!/bin/sh\nexec {sys.executable} -m tometune "$@"\n')
    (tmp_path / "tometune").chmod(0o755)
    script = """
        eval "$(tometune -sc install=bash | sed s/__main__.py/tometune/)"
        for line in "tometune trai" "tometune train -m data=mix_100k seed=0 lora.lora_a"; do
          words=($line) COMP_LINE=$line COMP_POINT=${#line} COMP_CWORD=$((${#words[@]} - 1))
          hydra_bash_completion; echo "${COMPREPLY[@]}"
        done
    """
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["train", "lora.lora_alpha="]
