"""One notebook, executed by papermill. It counts as done only when its last cell left the mark of this execution.

papermill alone can't be believed: after a dead kernel, a time limit or `sys.exit(0)` the notebook that it leaves
says that every cell completed.
"""

from __future__ import annotations

import ast
import contextlib
import ctypes
import os
import secrets
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import NotebookError, nearest
from ..files import write
from ..notebook import MARK, NONCE
from ..paths import checkout

FORBIDDEN_TAGS = {"raises-exception", "skip-execution"}  # they hide a failure
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


def execute(source: Path, target: Path, parameters: Mapping[str, Any], timeout_s: float = 300.0) -> None:
    """Run `source` with `parameters` in the folder of `target`, and leave the executed notebook there.

    `timeout_s` limits each cell. Raises NotebookError, naming the notebook, the cell and the error; what ran so far is
    then in `target` all the same, with the error in its metadata.
    """
    import nbformat

    name, nonce = source.name, secrets.token_hex(16)
    notebook = nbformat.read(source, as_version=4)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".papermill-", dir=target.parent) as folder:
        partial = Path(folder, source.name)
        error = _unfit(notebook, parameters) or _run(source, partial, target.parent, parameters, nonce, timeout_s)
        done = nbformat.read(partial, as_version=4) if partial.exists() else notebook
    error = error or _unfinished(done, nonce)
    _tidy(done, source.stem, error)
    write(target, nbformat.writes(done) + "\n")
    if error:
        raise NotebookError(f"{name}: {error}")


def prepare() -> None:
    """Import what the threads will need: matplotlib looks into modules that another thread has only half imported."""
    import IPython  # noqa: F401
    import nbconvert  # noqa: F401

    _papermill()


def _unfit(notebook: Any, parameters: Mapping[str, Any]) -> str:
    """What forbids to run the notebook at all, or ''."""
    for number, cell in enumerate(notebook.cells):
        tags = FORBIDDEN_TAGS & set(cell.metadata.get("tags", []))
        if tags:
            return f"cell {number}: tag {tags.pop()!r} would hide a failure"
    known = _parameter_names(notebook)
    for name in parameters:
        if name not in known:
            allowed = ", ".join(known) or "none"
            return f"parameter {name!r} is not known{nearest(name, known)}; the notebook takes {allowed}"
    return ""


def _parameter_names(notebook: Any) -> list[str]:
    """Names that the cell tagged `parameters` assigns."""
    cells = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    found: list[str] = []
    for node in ast.parse(cells[0].source).body if cells else []:
        targets = node.targets if isinstance(node, ast.Assign) else []
        found += [t.id for t in targets if isinstance(t, ast.Name)]
    return found


def _run(source: Path, partial: Path, folder: Path, parameters: Mapping[str, Any], nonce: str, timeout_s: float) -> str:
    """Let papermill execute `source` into `partial`. Returns what went wrong, or ''."""
    papermill = _papermill()
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    with _kernel_manager(nonce) as manager:
        try:
            papermill.execute_notebook(
                str(source),
                str(partial),
                parameters=dict(parameters),
                progress_bar=False,
                execution_timeout=timeout_s,
                kernel_manager_class=manager,
                # papermill's own `cwd` changes the directory of this whole process, other threads included.
                resources={"metadata": {"path": str(folder)}},
            )
        except papermill.PapermillExecutionError as e:
            return f"cell {e.cell_index}: {e.ename}: {e.evalue}"
        except CellTimeoutError:
            return f"{_last_cell(partial)}took longer than {timeout_s:g} s"
        except DeadKernelError:
            return f"{_last_cell(partial)}the kernel died"
        except (RuntimeError, ValueError, OSError) as e:
            return f"{_last_cell(partial)}{type(e).__name__}: {e}"
    return ""


def _papermill() -> Any:
    # A schema package of jupyter_events, half of papermill's start-up, that no notebook needs.
    sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
    import papermill

    return papermill


@contextlib.contextmanager
def _kernel_manager(nonce: str) -> Iterator[type]:
    """A class of kernel managers for one notebook, and the certainty that its kernels are gone afterwards.

    The kernel is this very interpreter, whatever the kernelspecs of the user say. It speaks TCP on this machine alone:
    named sockets with relative paths mix up notebooks that run side by side.
    """
    from jupyter_client.manager import AsyncKernelManager

    started: list[Any] = []

    class Manager(AsyncKernelManager):
        async def _async_launch_kernel(self, kernel_cmd: list[str], **kw: Any) -> None:
            kw |= {"env": {**kw.get("env", os.environ), **_environment(nonce)}, "preexec_fn": _die_with_parent}
            await super()._async_launch_kernel([sys.executable, *kernel_cmd[1:], "--log-level=ERROR"], **kw)
            started.append(self.provisioner.process)  # type: ignore[union-attr]

    try:
        yield Manager
    finally:
        for process in started:
            _kill(process)


def _environment(nonce: str) -> dict[str, str]:
    root = checkout()
    path = os.pathsep.join(p for p in (str(root) if root else "", os.environ.get("PYTHONPATH", "")) if p)
    return {NONCE: nonce, **({"PYTHONPATH": path} if path else {})}


def _die_with_parent() -> None:
    """Runs in the child before the kernel: it gets SIGKILL when the thread that started it ends, whatever it does."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _kill(process: Any) -> None:
    """Kill a kernel that is still there, and what it started in its session."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _last_cell(partial: Path) -> str:
    """'cell 3: ' for the last cell that papermill began, by its own record of times."""
    import nbformat

    if not partial.exists():
        return ""
    cells = nbformat.read(partial, as_version=4).cells
    begun = [i for i, c in enumerate(cells) if c.metadata.get("papermill", {}).get("start_time")]
    return f"cell {begun[-1]}: " if begun else ""


def _unfinished(notebook: Any, nonce: str) -> str:
    """Why the notebook cannot have run as a whole, or ''."""
    code = [(i, c) for i, c in enumerate(notebook.cells) if c.cell_type == "code" and c.source.strip()]
    skipped = [i for i, c in code if c.execution_count is None]
    if skipped:
        return f"cell {skipped[0]}: was not executed"
    if not code or not any(_is_mark(output, nonce) for output in code[-1][1].outputs):
        return "no completion mark: the notebook ended before its last cell"
    return ""


def _is_mark(output: Any, nonce: str) -> bool:
    mark = output.get("data", {}).get(MARK)
    return isinstance(mark, dict) and mark.get("completed") is True and mark.get("nonce") == nonce


def _tidy(notebook: Any, title: str, error: str) -> None:
    """Take the paths of this machine out of the metadata, and say how it ended."""
    metadata = notebook.metadata.get("papermill", {})
    for key in ("input_path", "output_path", "environment_variables"):
        metadata.pop(key, None)
    notebook.metadata["title"] = title
    notebook.metadata["cc1d"] = {"status": "failed" if error else "completed", "error": error}
