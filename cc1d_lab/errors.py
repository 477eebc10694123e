"""Typed errors and the exit code that each one means on the command line.

Every class is also a subclass of the built-in that callers of other packages catch
(ValueError, TypeError, RuntimeError, IndexError), so `except ValueError` works as expected.
A message names the argument, the value seen and the remedy.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping


class Cc1dError(Exception):
    """Base of all errors that this package raises on purpose."""

    exit_code = 2


class ConfigError(Cc1dError, ValueError):
    """An option, an experiment file or a name is invalid."""


class ShapeError(Cc1dError, ValueError):
    """A tensor has the wrong rank or the wrong size."""


class LayoutError(Cc1dError, ValueError):
    """A tensor's strides or alignment do not suit the variant, or tensors overlap."""


class LimitError(Cc1dError, ValueError):
    """A size is beyond what a variant, a device or this machine can do."""


class RangeError(Cc1dError, IndexError, ValueError):
    """A value of an index tensor is out of range."""


class DtypeError(Cc1dError, TypeError):
    """A tensor has a dtype that is not supported, or dtypes do not go together."""


class DeviceError(Cc1dError, RuntimeError):
    """A tensor is on a device that the backend cannot use."""


class ToolchainError(Cc1dError, RuntimeError):
    """A compiler or a device is missing."""

    exit_code = 3


class CompileError(Cc1dError, RuntimeError):
    """A compiler refused a kernel. `reason` is its first error, `log` the path of the whole output."""

    exit_code = 3

    def __init__(self, reason: str, command: str = "", log: str = "") -> None:
        self.reason, self.command, self.log = reason, command, log
        super().__init__("\n".join(p for p in (reason, command and f"command: {command}", log and f"log: {log}") if p))


class CodeObjectError(Cc1dError, ValueError):
    """A compiled file holds no code object that can be read."""

    exit_code = 3


class CacheError(Cc1dError, RuntimeError):
    """The build cache is not private, or not writable."""

    exit_code = 3


class LaunchError(Cc1dError, RuntimeError):
    """A kernel was refused by the device, or the emulation found it misbehaving."""

    exit_code = 4


class CheckError(Cc1dError, RuntimeError):
    """A kernel gave wrong results, crashed or hung when it was tried in a process of its own; it was not run here."""

    exit_code = 1


class WorkerError(Cc1dError, RuntimeError):
    """A worker process died or overran its time limit."""

    exit_code = 4


class NotebookError(Cc1dError, RuntimeError):
    """A notebook failed, or did not reach its last cell."""

    exit_code = 4


class StoreError(Cc1dError, RuntimeError):
    """A run directory cannot be read or written."""


def one_of(name: str, value: object, allowed: Iterable[str], meant: Mapping[str, str] | None = None) -> str:
    """Return `value` when it is among `allowed`; raise ConfigError with the nearest neighbour when not.

    `meant`: what others call one of these, and the name of it here.
    """
    names = list(allowed)
    if isinstance(value, str) and value in names:
        return value
    hint = f" (here it is {meant[str(value)]!r})" if meant and str(value) in meant else nearest(str(value), names)
    raise ConfigError(f"{name}: {value!r} is not known{hint}; allowed: {', '.join(names)}")


def nearest(value: str, names: Iterable[str]) -> str:
    """' (did you mean ...?)' for the closest of `names`, or nothing."""
    close = difflib.get_close_matches(value, list(names), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def positive(name: str, value: str | float) -> float:
    """The number that `value` is; ConfigError unless it is finite and above 0."""
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf:
        raise ConfigError(f"{name}: {value!r} must be a number above 0")
    return number
