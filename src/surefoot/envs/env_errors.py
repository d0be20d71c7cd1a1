"""Which error to raise for what an environment raises."""

import re
import traceback
from collections.abc import Sequence
from pathlib import Path

import gymnasium

from surefoot.envs.env_id import describe_error
from surefoot.envs.step_timeout import StepTimeout, StepTimeoutError
from surefoot.errors import EnvContractError, EnvCrashError, SurefootError

_CALLERS = Path(__file__).parents[1], Path(gymnasium.__file__).parent
_OLD_INTERFACE = (
    (
        r"^not enough values to unpack \(expected 5, got 4\)$",
        "step returned 4 values, as Gym did before 0.26; return obs, reward, terminated, "
        "truncated, info, where terminated is an end of the task and truncated a time limit",
    ),
    (
        r"^(not enough|too many) values to unpack \(expected 2",
        "reset returned no pair; since Gym 0.26 it returns (obs, info)",
    ),
    (
        r"reset\(\) got an unexpected keyword argument '(seed|options)'",
        "reset takes no seed; since Gym 0.26 it is reset(self, *, seed=None, options=None) and "
        "begins with super().reset(seed=seed)",
    ),
)


def attributed(error: BaseException, index: int) -> BaseException:
    """The error to raise for one that environment `index` caused."""
    if isinstance(error, StepTimeoutError):
        error.args = (f"environment {index}",)
    elif isinstance(error, EnvContractError):
        error.index = index
    # SystemExit would end the run without a word; KeyboardInterrupt is the user's and passes.
    elif not isinstance(error, SurefootError | KeyboardInterrupt):
        if hint := _old_interface(error):
            return EnvContractError(hint, index=index)
        return EnvCrashError(describe_error(error), index=index)
    return error


def subscript(at: Sequence[int]) -> str:
    """An index as it is written behind an array's name; nothing for a scalar."""
    return f"[{', '.join(map(str, at))}]" if at else ""


def crash_error(env_id: str, doing: str, error: BaseException) -> EnvCrashError:
    """The error to raise for an exception that no single environment can be blamed for."""
    return EnvCrashError(
        f"{env_id}: {doing} {describe_error(error)}; run it alone with the same seed to see it"
    )


def hung_error(env_id: str, error: StepTimeoutError, timeout: StepTimeout) -> EnvCrashError:
    """The error to raise for environments that hang while they are made or closed."""
    what = error.args[0] if error.args else "it"
    return EnvCrashError(f"{env_id}: {what} {timeout.message}", name="ENV-HUNG")


def _old_interface(error: BaseException) -> str | None:
    """What to change, for an exception that shows an environment for Gym before 0.26.

    Such an exception is raised by the caller, Gymnasium's wrappers or this package, and not by the
    environment's own code.
    """
    frames = traceback.extract_tb(error.__traceback__)
    innermost = Path(frames[-1].filename) if frames else Path()
    if not any(innermost.is_relative_to(caller) for caller in _CALLERS):
        return None
    text = str(error)
    return next((hint for pattern, hint in _OLD_INTERFACE if re.search(pattern, text)), None)
