"""Turns an error of Hydra, OmegaConf or PyYAML into one line: the key, what is wrong, and the nearest valid name."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException, ValidationError
from yaml import MarkedYAMLError, YAMLError

from tometune.common.errors import ConfigError, UserError, chain_of, did_you_mean, hydra_text, nearest, shell_word
from tometune.config.aliases import keys_of
from tometune.config.root import conf_dir, setting_keys

KEYS = "a group of keys, not a value; set {key}.KEY=VALUE"
WRONG_VALUES = {
    "is not Optional": "must not be null",
    "converted to Integer": "not an integer",
    "converted to Float": "not a number",
    "not a valid bool": "not true or false",
    "to string": "not a text",
    "is not a ListConfig": "not a list; write {key}=[a,b]",
    "is not a subclass of": KEYS,
    "Cannot merge DictConfig with": KEYS,
}
"""Parts of OmegaConf's messages, and what we write instead."""

OWN_FILE = {"data": "data=mine data.path", "eval": "eval=own eval.path"}
"""What reads a file that was named where a group's option belongs."""

PLUGINS = {
    "joblib": "hydra-joblib-launcher",
    **dict.fromkeys(("submitit_local", "submitit_slurm"), '"tometune[slurm]"'),
    "ray": '"tometune[ray]"',
    "optuna": '"tometune[optuna]"',
}
"""Launchers and sweepers from other packages, which our presets use, and what to install for them."""


@contextmanager
def composition_errors(extra_folder: Path | None = None) -> Iterator[None]:
    """Turn an error in composing a config into a one-line `ConfigError`, which names the YAML file that is wrong."""
    try:
        yield
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise ConfigError([explain(error, extra_folder)]) from error


def explain(error: BaseException, extra_folder: Path | None = None) -> str:
    """Return the line for an error of Hydra, OmegaConf or PyYAML; `extra_folder` is that of `--config-dir`."""
    chain = chain_of(error)
    text = re.sub(r"^In '[^']+': |\s*See https://hydra\.cc\S+ for details", "", str(error))
    # Hydra's message names the YAML file that is wrong; the error has no attribute for it.
    named = next((found[1] for cause in chain if (found := re.match(r"In '([^']+)':", str(cause)))), None)
    files = (folder / f"{named}.yaml" for folder in (conf_dir(), extra_folder) if folder)
    where = f"{next(filter(Path.exists, files), f'{named}.yaml')}: " if named else ""
    if ours := next((cause for cause in chain if isinstance(cause, UserError)), None):  # of a resolver
        return str(ours)
    for cause in chain:
        if isinstance(cause, MarkedYAMLError) and cause.problem_mark is not None:
            return f"{cause.problem_mark.name}:{cause.problem_mark.line + 1}: not YAML: {cause.problem}"
        if isinstance(cause, MissingConfigException):
            return _missing_option(cause)
        if isinstance(cause, OmegaConfBaseException) and cause.full_key:
            override = text.partition("Error merging override ")[2]
            return where + _wrong_key(cause, cause.full_key, override or cause.full_key)
    if found := re.match(r"Could not delete from config\. 'eval\.tasks\.(.*)' does not exist\.", text):
        options = "".join(path.read_text(encoding="utf-8") for path in (conf_dir() / "eval").glob("*.yaml"))
        # Not the name itself: it is a task of another choice of eval, or is deleted twice.
        names = sorted({*re.findall(r"task@tasks\.(\w+)", options)} - {found[1]})
        return f"~eval.tasks.{found[1]}: no such task{did_you_mean(found[1], names)}"
    if isinstance(error, OverrideParseException):
        key, equals, value = error.override.partition("=")
        fix = f"quote the value: {_quoted(key, value)}" if equals else "write key=value"
        return f"{error.override}: {error.message.splitlines()[0] if equals else 'no value'}; {fix}"
    if isinstance(error, ConfigCompositionException) and text.startswith("Ambiguous value for argument"):
        override = text.partition("'")[2].partition("'\n")[0]
        key, _, value = override.partition("=")
        fix = f"one list is written {shell_word(f'{key}=[{value}]')}, one text {_quoted(key, value)}"
        return f"{override}: several values need --multirun (-m); {fix}"
    return where + (" ".join(text.split()) or type(error).__name__)


def _quoted(key: str, value: str) -> str:
    """Return an override with a quoted value as a word for the shell."""
    return shell_word(f"{key}={hydra_text(value)}")


def _missing_option(error: MissingConfigException) -> str:
    name = error.missing_cfg_file or ""
    found = re.search(r"Available options in '(.*)':", str(error))
    group = found[1] if found else name.rpartition("/")[0]
    option = name.removeprefix(f"{group}/")
    if (of := name.partition("/"))[0] in OWN_FILE and "." in Path(of[2]).name:
        return f"{of[0]}={of[2]}: no option of this group; for a file of your own write {OWN_FILE[of[0]]}={of[2]}"
    if option in PLUGINS and group.startswith("hydra/"):
        return f"{group}={option}: not installed; pip install {PLUGINS[option]}"
    if group == "model" and "/" in option:
        return f"model={option}: no such option; for a hub id or a folder write model.id={option}"
    options = error.options or []
    return f"{group}={option}: no such option{did_you_mean(option, options)} (options: {', '.join(options)})"


def _wrong_key(error: OmegaConfBaseException, key: str, override: str) -> str:
    text = str(error.msg or error).splitlines()[0]
    ours = next((ours for part, ours in WRONG_VALUES.items() if part in text), text).replace("{key}", key)
    if isinstance(error, ConfigAttributeError | ConfigKeyError):
        return unknown_key(key, list(error.parent_node or {}))
    if isinstance(error, ValidationError) and not override.startswith("+"):
        value = "null" if error.value is None else error.value
        if found := re.search(r"expected one of \[(.*)\]", text):
            return f"{key}={value}: one of {found[1]}{did_you_mean(str(value), found[1].split(', '))}"
        return f"{key}={value}: {ours}"
    if found := re.search(r"Interpolation key '(.*)' not found", text):
        return f"{key}: refers to ${{{found[1]}}}; {unknown_key(found[1])}"
    if found := re.search(r"Environment variable '(.*)' not found", text):
        return f"{key}: refers to the environment variable {found[1]}, which is not set; set it"
    return f"{override}: {text if override.startswith('+') else ours}"


def unknown_key(key: str, siblings: Sequence[str] = ()) -> str:
    """Return the line for a key that does not exist, with the keys that may have been meant.

    `siblings` are the names that exist next to the key.
    """
    parent, _, last = key.rpartition(".")
    if parent == "eval.tasks":  # names of the user's own
        return f"{key}: no such task{did_you_mean(last, siblings)}; to add one: +eval/task@{key}=jsonl {key}.path=FILE"
    known = setting_keys()
    lasts = nearest(last, dict.fromkeys(name.rpartition(".")[2] for name in known))
    elsewhere = [name for name in known if name.rpartition(".")[2] in lasts]
    meant = (
        keys_of(last)
        or [f"{parent}.{name}".removeprefix(".") for name in nearest(last, siblings)]
        or [name for name in known if name == key.replace("/", ".")]
        or nearest(key, elsewhere)
        or elsewhere[:2]
    )
    return f"{key}: no such key" + (f"; did you mean {', '.join(meant)}?" if meant else "; --cfg job prints all keys")
