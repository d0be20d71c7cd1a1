"""The grammar of environment ids, and the one place that imports a module that an id names."""

import importlib
import os
import re
import shlex
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from surefoot.errors import ConfigError

ADAPTORS = {
    "envpool": "surefoot.envs.envpool:find_envpool",
    "gymnax": "surefoot.envs.gymnax:find_gymnax",
    "tabular": "surefoot.envs.tabular:find_tabular",
}
"""By prefix of an id, module and function: `find(name, env_kwargs) -> EnvSource`."""
PLANNED = ("brax",)
_MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
_NAME = re.compile(r"[^\s:]+")
_OURS = Path(__file__).parents[1]


class EnvId(NamedTuple):
    """An id, `[ADAPTOR:][MODULE:]NAME`, in parts; those that are not there are empty.

    `module` is imported, and may be anything; nothing else of an id is.
    """

    adaptor: str
    module: str
    name: str

    @property
    def within(self) -> str:
        """The id without its adaptor."""
        return f"{self.module}:{self.name}" if self.module else self.name


def parse_env_id(text: str) -> EnvId:
    """The parts of an id; a ConfigError for what is none."""
    first, colon, rest = text.partition(":")
    adaptor = first if colon and first in (*ADAPTORS, *PLANNED) else ""
    within = rest if adaptor else text
    if adaptor == "tabular" and re.fullmatch(r"random(:.*)?|.*\.npz", within, re.DOTALL):
        return EnvId(adaptor, "", within)  # a family with its seed, or a file: both import nothing
    module, colon, name = within.rpartition(":")
    a_file = module.endswith(".py")  # far more often than a module called `py`
    if not _NAME.fullmatch(name) or a_file or (colon and not _MODULE.fullmatch(module)):
        hint = "an id is CartPole-v1, module:id, module:function, or gymnax:, envpool:, tabular: id"
        if a_file:
            path = module.removesuffix(".py").lstrip("./").replace("/", ".")
            hint = f"a module is named as Python imports it: {path}:{name}"
        raise ConfigError(f"{text!r} is no environment id: {hint}", name="UNKNOWN-ENV")
    return EnvId(adaptor, module, name)


def imports_nothing(env_id: str) -> bool:
    """Whether making an environment by this id imports no module of the user's."""
    try:
        return not parse_env_id(env_id).module
    except ConfigError:
        return True  # nothing is made by it


def env_flag(env_id: str) -> str:
    """The --env flag for commands on a run of this environment, as loading imports nothing."""
    return f" --env {shlex.quote(env_id)}" if env_id and not imports_nothing(env_id) else ""


def import_own(module: str, env_id: str) -> ModuleType:
    """Import the module that an id names.

    Raises:
        ConfigError: where there is none, or importing it fails, with the place in its code.
    """
    here = os.getcwd()
    # Last: a file of the user's may have the name of a library's module.
    if here not in sys.path:
        sys.path.append(here)
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        # The module may exist and lack a package of its own, which this error names.
        if error.name is None or f"{module}.".startswith(f"{error.name}."):
            raise ConfigError(
                f"{env_id}: no module {module} in the current directory or installed",
                name="UNKNOWN-ENV",
            ) from error
        raise _failed(module, env_id, error) from error
    # `sys.exit` in a script would end this program as if all were well.
    except (Exception, SystemExit) as error:
        raise _failed(module, env_id, error) from error


def _failed(module: str, env_id: str, error: BaseException) -> ConfigError:
    text = f"{env_id}: importing {module} {describe_error(error)}"
    return ConfigError(text, name="IMPORT")


def describe_error(error: BaseException) -> str:
    """An exception of code that is not ours, on one line, with its place in that code."""
    text = " ".join(str(error).split()) or "no message"
    if isinstance(error, SyntaxError):
        return f"raised {type(error).__name__}: {text}"  # which names file and line
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [
        frame
        for frame in frames
        if not frame.filename.startswith("<") and not Path(frame.filename).is_relative_to(_OURS)
    ]
    place = f" ({theirs[-1].filename}, line {theirs[-1].lineno})" if theirs else ""
    return f"raised {type(error).__name__}: {text}{place}"
