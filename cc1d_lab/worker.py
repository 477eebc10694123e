"""Kernels run in a process of their own: one that crashes, hangs or breaks its device costs its own row.

A worker is forked from a server that has torch loaded but never runs a kernel and never touches a device.
It evaluates group after group, and tells which cell it is at; when it dies or overruns, the cell that it was at is to
blame, and a fresh worker takes the rest.
"""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import tempfile
import threading
import types
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

from .cell import Cell
from .errors import WorkerError, positive
from .results import Row
from .timing import Policy

TIME_LIMIT_S = 120.0  # for one step (build, check, time) of a cell; CC1D_TIME_LIMIT overrides
PR_SET_PDEATHSIG = 1


class Worker:
    """Evaluates groups in a child process, replaced whenever it breaks. A context manager.

    `logs`: where what kernels print goes. Without it, it stays only when a kernel has broken the process.
    """

    def __init__(self, logs: Path | None = None, time_limit_s: float | None = None) -> None:
        self._context: ForkServerContext = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["cc1d_lab.evaluation"])
        given = os.environ.get("CC1D_TIME_LIMIT") or TIME_LIMIT_S
        self._limit = time_limit_s or positive("CC1D_TIME_LIMIT", given)
        self._logs = logs or Path(tempfile.mkdtemp(prefix="cc1d-logs-"))
        self._temporary = logs is None
        self._process: ForkServerProcess | None = None
        self._pipe: Connection | None = None
        self._number = 0
        self._blamed = False

    def __enter__(self) -> Worker:
        list(self._conversation([], None))  # until it answers, so that its start is in nobody's time
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop()
        if self._temporary and not self._blamed:
            shutil.rmtree(self._logs, ignore_errors=True)

    def evaluate(self, cells: list[Cell], policy: Policy | None) -> Iterator[Row]:
        """Rows of a group, in the order in which they are known; every cell gets one, whatever its kernel does."""
        waiting = {c.cell_id: c for c in cells}
        together = True
        while waiting:
            group = list(waiting.values()) if together else [next(iter(waiting.values()))]
            culprit = ""
            for kind, value in self._conversation(group, policy):
                if kind == "begin":
                    culprit = value
                elif kind == "row":
                    waiting.pop(value["cell_id"], None)
                    yield value
                elif culprit in waiting or len(group) == 1:
                    cell = waiting.pop(culprit, None) or waiting.pop(group[0].cell_id)
                    yield self._blame(cell, value)
                else:
                    together = False  # it died while all were being timed: take them one by one

    def renew(self) -> None:
        """End the child process; what is evaluated next gets a fresh one."""
        self._stop()

    def try_out(self, cell: Cell) -> Row:
        """The row of `evaluation.quick_check`, or one that says how the kernel ended the worker."""
        ((kind, value),) = self._conversation([cell], None, quick=True)
        return value if kind == "row" else self._blame(cell, value)

    def _conversation(self, group: list[Cell], policy: Policy | None, quick: bool = False) -> Iterator[tuple[str, Any]]:
        """What the worker says: ('begin', cell_id), ('row', row), or ('died', outcome) at last."""
        pipe = self._ask((group, policy, quick))
        while True:
            if not pipe.poll(self._limit):
                self._stop()
                yield "died", {"status": "timeout", "reason": f"took more than {self._limit:g} s"}
                return
            try:
                kind, value = json.loads(pipe.recv_bytes())
            except (EOFError, OSError, ValueError):
                yield "died", self._post_mortem()
                return
            if kind == "end":
                return
            yield kind, value
            if kind == "row" and value["status"] == "launch_failed" and value["backend"] != "cpu":
                # The device's context may be broken for good, so the rest of the group goes to a fresh worker.
                self._stop()
                return

    def _ask(self, what: tuple[list[Cell], Policy | None, bool]) -> Connection:
        """Send to the worker; one that has died since its last answer, which nobody is to blame for, is replaced."""
        pipe = self._start()
        try:
            pipe.send(what)
        except OSError:
            self._stop()
            pipe = self._start()
            pipe.send(what)
        return pipe

    def _blame(self, cell: Cell, outcome: dict[str, str]) -> Row:
        from .evaluation import base_row

        self._blamed = True
        log = self._log if self._temporary else self._log.relative_to(self._logs.parent)
        return base_row(cell, log=str(log), **outcome)

    @property
    def _log(self) -> Path:
        return self._logs / f"worker-{self._number}.log"

    def _start(self) -> Connection:
        if self._pipe is not None and self._process is not None and self._process.is_alive():
            return self._pipe
        self._stop()
        self._number += 1
        self._logs.mkdir(parents=True, exist_ok=True)
        mine, theirs = self._context.Pipe()
        # The server's environment is that of its start; a worker has the caller's of now.
        arguments = (theirs, str(self._log), dict(os.environ))
        self._process = self._context.Process(target=_serve, args=arguments, daemon=True)
        _start_without_main(self._process)
        theirs.close()
        self._pipe = mine
        return mine

    def _post_mortem(self) -> dict[str, str]:
        """How the worker died, with the last thing that it wrote."""
        if self._process is None:
            raise WorkerError("the worker was stopped while it was being read")
        self._process.join(10)
        code = self._process.exitcode
        self._stop()
        died = f"killed by {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
        lines = self._log.read_text(errors="replace").split("\n") if self._log.exists() else []
        said = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return {"status": "crashed", "reason": f"{died}: {said[:300]}" if said else died}

    def _stop(self) -> None:
        """Kill the worker and all that it started."""
        if self._process is not None:
            if self._process.pid and self._process.is_alive():
                try:
                    os.killpg(self._process.pid, signal.SIGKILL)
                except ProcessLookupError:
                    self._process.kill()
            self._process.join(10)
        if self._pipe is not None:
            self._pipe.close()
        self._process = self._pipe = None


_main_is_hidden = threading.Lock()  # operators may be called for the first time in several threads


def _start_without_main(process: ForkServerProcess) -> None:
    """Start a process that does not import the caller's script again: it need not have been written for that."""
    with _main_is_hidden:
        main, sys.modules["__main__"] = sys.modules["__main__"], types.ModuleType("__main__")
        try:
            process.start()
        finally:
            sys.modules["__main__"] = main


def _serve(pipe: Connection, log: str, environment: dict[str, str]) -> None:
    """The child: evaluate what comes through the pipe. What kernels print goes to the log."""
    os.environ.clear()
    os.environ.update(environment)
    _settle_down(log)

    def say(kind: str, value: Any) -> None:
        pipe.send_bytes(json.dumps([kind, value]).encode())

    while True:
        try:
            cells, policy, quick = pipe.recv()
        except EOFError:
            return
        for row in _evaluator(cells, quick)(cells, policy, lambda cell_id, what: say("begin", cell_id)):
            say("row", row)
        say("end", None)


def _evaluator(cells: list[Cell], quick: bool) -> Callable[..., Iterator[Row]]:
    """What makes rows of a group: of kernels, in a quick check of them, or of the programs of the pipeline study."""
    from . import evaluation
    from .pipeline import evaluation as programs

    if quick:
        return lambda cells, policy, phase: map(evaluation.quick_check, cells)
    return programs.evaluate_each if cells and cells[0].program else evaluation.evaluate_each


def _settle_down(log: str) -> None:
    os.setsid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for target, source in ((0, nothing), (1, out), (2, out)):
        os.dup2(source, target)
