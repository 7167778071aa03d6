"""What the package's own code never does: run code of others, read pickles, set a default twice, write half a file."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import tometune

PACKAGE = Path(tometune.__file__).parent
PICKLES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
PROCESSES = "joblib.externals.loky"
"""Processes of this program, as multiprocessing starts them: what they pickle comes from no file."""

CONFIG = re.compile(r"^(self\.)?_?(config|cfg)(\.\w+)*$")


def broken(source: str) -> Iterator[str]:
    """Yield what is forbidden in a module, by its syntax: comments and texts may name it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [name.name for name in node.names]
            read = [name for name in modules if name.partition(".")[0] in PICKLES and not name.startswith(PROCESSES)]
            yield from (f"imports {name}" for name in read)
        elif isinstance(node, ast.keyword) and node.arg == "trust_remote_code" and ast.unparse(node.value) != "False":
            yield "trusts remote code"
        elif isinstance(node, ast.Dict):
            names = [key.value for key in node.keys if isinstance(key, ast.Constant)]
            yield from ("trusts remote code" for name in names if name == "trust_remote_code")
        elif isinstance(node, ast.Call):
            yield from _broken_call(node)


def _broken_call(node: ast.Call) -> Iterator[str]:
    """Yield what is forbidden in one call."""
    name = ast.unparse(node.func)
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
    if name == "torch.load" and given.get("weights_only") != "True":
        yield "torch.load without weights_only=True"
    if name in ("np.load", "numpy.load") and given.get("allow_pickle", "False") != "False":
        yield "numpy.load of pickles"
    if name == "getattr" and len(node.args) == 3 and CONFIG.match(ast.unparse(node.args[0])):
        yield "a second default of a setting"


def test_no_code_of_others_no_pickles_no_second_defaults():
    found = {path: list(broken(path.read_text(encoding="utf-8"))) for path in PACKAGE.rglob("*.py")}
    assert {path: problems for path, problems in found.items() if problems} == {}


@pytest.mark.parametrize(
    "source",
    [
        "load(x, trust_remote_code=True)",
        "load(x, trust_remote_code=config.trust)",
        "load(x, **{'trust_remote_code': True})",
        "import pickle",
        "from joblib import load",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "getattr(config, 'seed', 0)",
        "getattr(self.config.trainer, name, None)",
    ],
)
def test_each_of_them_is_found(source):
    assert len(list(broken(source))) == 1


def test_what_is_allowed_is_not():
    allowed = "torch.load(path, weights_only=True); getattr(config, name); np.load(x); f(trust_remote_code=False)"
    assert list(broken(allowed)) == []


IN_PLACE = {
    "common/files.py": (1, "the temporary file that is then renamed"),
    "common/cache.py": (1, "in the temporary folder that is then renamed"),
    "data/contamination.py": (2, "in a temporary folder of the cache"),
    "data/standardise.py": (2, "in a temporary folder of the cache"),
    "training/checkpoints.py": (1, "in the temporary folder that is then renamed"),
    "training/metrics.py": (2, "in a checkpoint that counts only with its last file; lines that are appended"),
    "runs/lock.py": (1, "the lock's own file, while it is held"),
    "chatting/terminal.py": (2, "a file of the user, which must not exist"),
    "models/unsloth_backend.py": (1, "the null device"),
}
"""Modules that write files at their own paths: how many such calls, and why a reader never sees half a file."""


def written_in_place(source: str) -> list[str]:
    """Return the calls of a module that write a text or JSON file at its own path."""
    found = []
    for node in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        name = ast.unparse(node.func)
        mode = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
        opens = name.split(".")[-1] == "open" and any(str(text)[:1] in "wxa" for text in mode if text)
        if opens or name.endswith((".write_text", ".write_bytes")) or name == "json.dump":
            found.append(ast.unparse(node))
    return found


def test_files_are_written_through_the_atomic_functions():
    modules = {path.relative_to(PACKAGE).as_posix(): path for path in PACKAGE.rglob("*.py")}
    found = {name: written_in_place(path.read_text(encoding="utf-8")) for name, path in modules.items()}
    assert {name: len(calls) for name, calls in found.items() if calls} == {
        n: count for n, (count, _) in IN_PLACE.items()
    }


@pytest.mark.parametrize(
    "source", ["p.write_text(x)", "open(p, 'w')", "p.open('wb')", "json.dump(x, f)", "p.open('a')"]
)
def test_each_way_of_writing_in_place_is_found(source):
    assert written_in_place(source)
    assert written_in_place("p.open('rb'); open(p); write_text(p, x)") == []
