"""conf/ is found in a checkout and in an installed package."""

import shutil
import subprocess
import sys
from pathlib import Path

import tometune
from tometune.config.root import conf_dir


def test_checkout_has_the_manual():
    assert (conf_dir() / "train.yaml").exists()


def test_installed_layout_is_used_from_another_folder(tmp_path):
    """The layout of the wheel: conf/ inside the package, no checkout around it."""
    package = tmp_path / "site" / "tometune"
    shutil.copytree(Path(tometune.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__", "conf"))
    shutil.copytree(conf_dir(), package / "conf")
    script = "from tometune.config.root import conf_dir; print(conf_dir())"
    command = [sys.executable, "-c", script]
    done = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(package.parent)}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(package / "conf")
