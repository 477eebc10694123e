"""The command line: `cc1d VERB`. Argument parsing and printing only; what a verb needs is imported when it runs.

Exit codes: 0 fine · 1 some cells wrong · 2 usage or an invalid experiment · 3 toolchain or environment missing ·
4 a worker or notebook died · 5 nothing was measured · 130 interrupted, what was measured is kept ·
70 a defect of cc1d_lab itself.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from .. import __version__
from ..errors import Cc1dError
from . import explore, machine, measure, profile

VERBOSE = ("-v", "--verbose")
INTERRUPTED = "interrupted; what was measured is kept, `cc1d run EXPERIMENT --resume` goes on"
DEFECT = 70


class Lab(click.Group):
    """The group of verbs. A verb returns its exit code, or None for 0; an error is one line and its code."""

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any) -> NoReturn:  # type: ignore[override]
        """Run a verb and leave the process. `-v`, anywhere, shows where an error comes from."""
        given = list(sys.argv[1:] if args is None else args)
        plain = [a for a in given if a not in VERBOSE]
        extra["standalone_mode"] = False
        try:
            code = super().main(plain, prog_name or "cc1d", **extra)
        except BaseException as e:
            if len(plain) < len(given) and not isinstance(e, SystemExit):
                traceback.print_exc()
            code = _fail(e)
        sys.exit(code or 0)


def _fail(error: BaseException) -> int:
    """Say what happened and return its exit code. Not ours to handle: SystemExit."""
    if type(error).__name__ == "NoArgsIsHelpError":  # click before 8.2 has none
        click.echo(str(error))
        return 2
    if isinstance(error, click.UsageError):
        help_of = f"; see `{error.ctx.command_path} --help`" if error.ctx else ""
        return _complain(error.format_message().replace("\n", " ").rstrip(".") + help_of, 2)
    if isinstance(error, click.ClickException):
        return _complain(error.format_message(), 2)
    if isinstance(error, Cc1dError):
        return _complain(str(error), error.exit_code)
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return _complain(INTERRUPTED, 130)
    if isinstance(error, Exception):
        return _complain(f"{type(error).__name__}: {error}; a defect of cc1d_lab: -v shows where", DEFECT)
    raise error


def _complain(message: str, code: int) -> int:
    # Outside of any context: NO_COLOR is asked again.
    colour = False if os.environ.get("NO_COLOR") else None
    click.echo(f"{click.style('error:', fg='red')} {message}", err=True, color=colour)
    return code


def _either_dash(name: str) -> str:
    """`--use_silu` and `--use-silu` are the same option."""
    return name.replace("_", "-")


@click.group(
    cls=Lab,
    context_settings={"token_normalize_func": _either_dash, "help_option_names": ["-h", "--help"]},
    epilog="-v, anywhere, shows where an error comes from.",
)
@click.version_option(__version__, prog_name="cc1d")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Compare HIP variants of the causal depthwise conv1d: correctness first, then speed."""
    if os.environ.get("NO_COLOR"):
        ctx.color = False


for _verb in (*explore.VERBS, *measure.VERBS, *machine.VERBS, *profile.VERBS):
    main.add_command(_verb)
