"""What the package's own code never does: run code of others, read pickles, give a setting a second default."""

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


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_code_of_others_no_pickles_no_second_defaults(path):
    assert list(broken(path.read_text(encoding="utf-8"))) == []


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
