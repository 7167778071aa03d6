"""What the package's own code never does: run code of others, read pickles, set a default twice, write half a file."""

import re
from pathlib import Path

import pytest

import tometune

PACKAGE = Path(tometune.__file__).parent
SOURCES = {path.relative_to(PACKAGE).as_posix(): path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}

FORBIDDEN = {
    "code of others": r"trust_remote_code\b(?! *= *False)",
    # loky starts processes of this program, as multiprocessing does: what they pickle comes from no file.
    "pickles": r"^ *(?:import|from) (?:c?[pP]ickle|cloudpickle|dill|shelve|marshal|joblib(?!\.externals\.loky))\b",
    "pickles of torch": r"torch\.load\((?!.*weights_only=True)",
    "pickles of numpy": r"allow_pickle(?! *= *False)",
    "a second default of a setting": r"getattr\((?:self\.)?_?(?:config|cfg)[.\w]*, [^()]+, ",
}


def found(source: str) -> list[str]:
    return [what for what, pattern in FORBIDDEN.items() if re.search(pattern, source, re.MULTILINE)]


def test_no_code_of_others_no_pickles_no_second_defaults():
    assert {name: problems for name, source in SOURCES.items() if (problems := found(source))} == {}


@pytest.mark.parametrize(
    ("source", "problems"),
    [
        ("load(x, trust_remote_code=config.trust); load(x, **{'trust_remote_code': True})", ["code of others"]),
        ("x\n    from joblib import load", ["pickles"]),
        ("torch.load(path, weights_only=False)", ["pickles of torch"]),
        ("np.load(path, allow_pickle=True)", ["pickles of numpy"]),
        ("getattr(self.config.trainer, name, None)", ["a second default of a setting"]),
        ("torch.load(p, weights_only=True); getattr(config, name); np.load(x); f(trust_remote_code=False)", []),
    ],
)
def test_what_is_forbidden_is_found(source, problems):
    assert found(source) == problems


IN_PLACE = {
    "common/files.py": (1, "the temporary file that is then renamed"),
    "common/cache.py": (1, "in the temporary folder that is then renamed"),
    "common/integrity.py": (1, "in the temporary folder that is then renamed"),
    "data/contamination.py": (2, "in a temporary folder of the cache"),
    "data/standardise.py": (1, "in a temporary folder of the cache"),
    "training/checkpoints.py": (1, "in the temporary folder that is then renamed"),
    "training/metrics.py": (2, "in a checkpoint that counts only with its last file; lines that are appended"),
    "training/trainer.py": (1, "in the temporary folder that is then renamed"),
    "runs/lock.py": (1, "the lock's own file, while it is held"),
    "chatting/terminal.py": (2, "a file of the user, which must not exist"),
    "models/unsloth_backend.py": (1, "the null device"),
}
"""Modules that write files at their own paths: how many such calls, and why a reader never sees half a file."""

WRITES = re.compile(r"""\.write_(?:text|bytes)\(|json\.dump\(|\bopen\((?:[^()]*, )?["'][wxa]""")


def test_files_are_written_through_the_atomic_functions():
    written = {name: len(WRITES.findall(source)) for name, source in SOURCES.items()}
    assert {name: count for name, count in written.items() if count} == {n: count for n, (count, _) in IN_PLACE.items()}
    assert len(WRITES.findall("p.write_text(x); open(p, 'w'); p.open('wb'); json.dump(x, f); p.open(\"a\")")) == 5
    assert WRITES.findall("p.open('rb'); open(p); open(p, 'r'); write_text(p, x)") == []
