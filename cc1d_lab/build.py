"""Compile a cell to a shared library, once. The cache is content-addressed, private and needs no lock.

An entry is a directory `<variant>-<digest>` with the library, the source, the command and the compiler's output.
It is made in a temporary directory beside it and renamed into place: if the name exists by then,
somebody else built the same thing.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import os
import re
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import backends, code_object, files, variants
from .case import Case
from .cell import Cell
from .errors import CacheError, CodeObjectError, CompileError, ConfigError, positive
from .paths import kernels_dir
from .variants import Variant

CTYPES = {"float64": "double", "float32": "float", "float16": "float16", "bfloat16": "bfloat16"}
CACHE_LIMIT_BYTES = 2 * 2**30
COMPILE_LIMIT_S = 300
INDEX = "int64_t"  # of element offsets; tests narrow it to see that kernels count in it


@dataclass(frozen=True)
class Built:
    """A finished build. `seconds` is 0 when it was in the cache. `resources`: vgprs, spills, ... where known."""

    library: Path
    digest: str
    seconds: float
    resources: dict[str, int]

    @property
    def log(self) -> Path:
        """What the compiler printed."""
        return self.library.with_name("log.txt")


def build(
    variant: Variant, case: Case, tunables: Mapping[str, int], backend: str, arch: str = "", toolchain: str = ""
) -> Built:
    """Compile `variant` for `case`, or find it in the cache. `toolchain`: see Cell.

    Raises ToolchainError (no compiler), CompileError (with the first error, the command and the log), CacheError.
    """
    if variant.source is None:
        raise ConfigError(f"variant {variant.name}: a baseline of torch has nothing to build")
    compiler, flags = backends.toolchain(backend, arch, toolchain)
    source = kernels_dir() / variant.source
    defines = _defines(case, variants.resolve_tunables(variant, tunables, case))
    extra = [str(emulation_runtime().library)] if backend == "cpu" else []
    return _cached(variant.name, compiler, [*flags, *defines, f"-I{source.parent / 'include'}"], source, extra)


def build_cell(cell: Cell) -> Built:
    """`build` for what a cell says."""
    return build(variants.get(cell.variant), cell.case, cell.tunables, cell.backend, cell.arch, cell.toolchain)


def build_all(cells: Iterable[Cell], jobs: int | None = None) -> Iterator[tuple[Cell, Built | Exception]]:
    """Build many cells in parallel, equal builds once; yields each as it is done. `jobs`: MAX_JOBS, else all cores."""
    limit = jobs or positive("MAX_JOBS", os.environ.get("MAX_JOBS") or len(os.sched_getaffinity(0)))
    with ThreadPoolExecutor(math.ceil(limit)) as pool:
        futures = {pool.submit(build_cell, c): c for c in _unique(cells)}
        for future in as_completed(futures):
            error = future.exception()
            yield futures[future], (error if isinstance(error, Exception) else future.result())
    evict()


def count(cells: Iterable[Cell]) -> int:
    """How many builds `build_all` will make of these cells."""
    return len(_unique(cells))


def _unique(cells: Iterable[Cell]) -> list[Cell]:
    return list({build_key(c): c for c in cells if variants.get(c.variant).source}.values())


def build_key(cell: Cell) -> tuple[Any, ...]:
    """Cells with the same key are compiled to the same library."""
    knobs = variants.resolve_tunables(variants.get(cell.variant), cell.tunables, cell.case)
    return (cell.variant, cell.backend, cell.arch, cell.toolchain, *_defines(cell.case, knobs))


def _defines(case: Case, tunables: Mapping[str, int]) -> list[str]:
    constants = {
        "ELEM": CTYPES[case.dtype],
        "WEIGHT": CTYPES[case.weight_dtype],
        "INDEX": INDEX,
        "WIDTH": case.width,
        "SILU": int(case.activation == "silu"),
        "CHANNEL_LAST": int(case.layout == "channel_last"),
        "STATES": int(case.states),
        "SEQ_IDX": int(case.seq_idx),
        **{name.upper(): value for name, value in tunables.items()},
    }
    return [f"-DCC1D_{name}={value}" for name, value in sorted(constants.items())]


@functools.cache
def emulation_runtime() -> Built:
    """The emulation itself, which every kernel of the cpu backend is linked with."""
    source = kernels_dir() / "emulation" / "runtime.cpp"
    flags = ["-std=c++17", "-O2", "-fPIC", "-shared", "-U_FORTIFY_SOURCE", "-pthread", f"-I{kernels_dir() / 'include'}"]
    return _cached("emulation", backends.get("cpu").compiler(), flags, source, [])


# --- the cache ------------------------------------------------------------------------------------


def cache_dir() -> Path:
    """CC1D_CACHE, else $XDG_CACHE_HOME/cc1d_lab. Made private (0700); CacheError where somebody else could write."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cc1d_lab"
    path = Path(os.environ.get("CC1D_CACHE") or default)
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.lstat()
    except OSError as e:
        raise CacheError(f"cache {path}: {e.strerror}; set CC1D_CACHE to a directory of your own") from e
    mode = stat.S_IMODE(status.st_mode)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or mode & 0o022:
        raise CacheError(
            f"cache {path}: mode {mode:04o}, owner {status.st_uid}: a cached library is code, so the directory must be "
            f"yours alone (chmod 700 {path}, or set CC1D_CACHE)"
        )
    return path


def _cached(name: str, compiler: str, flags: list[str], source: Path, libraries: list[str]) -> Built:
    digest = _digest(compiler, flags, source, libraries)
    entry = cache_dir() / f"{name}-{digest}"
    found = _load_entry(entry, digest)
    return found or _compile(entry, digest, [compiler, *flags, str(source), *_linked(libraries)])


def _linked(libraries: list[str]) -> list[str]:
    return ["-x", "none", *libraries] if libraries else []


def _digest(compiler: str, flags: list[str], source: Path, libraries: list[str]) -> str:
    # Headers count by their bytes, so that where the checkout lies does not matter.
    fixed = [f for f in flags if not f.startswith("-I")]  # in their order: the last of two that contradict wins
    identity = [compiler, backends.compiler_version(compiler), *fixed, *libraries, source.name, _tree_digest(source)]
    return hashlib.sha256("\0".join(identity).encode()).hexdigest()[:16]


def _tree_digest(source: Path) -> str:
    """Digest of a source and of our headers that it includes, directly or not, whatever conditions they stand under."""
    return hashlib.sha256(b"".join(p.read_bytes() for p in [source, *_headers(source)])).hexdigest()


def _headers(source: Path) -> list[Path]:
    include, found, waiting = kernels_dir() / "include", set[Path](), [source]
    while waiting:
        file = waiting.pop()
        names = re.findall(r'^\s*#\s*include\s*["<]([^">]+)[">]', file.read_text(), re.MULTILINE)
        paths = [at / name for name in names for at in (file.parent, include)]
        fresh = {p.resolve() for p in paths if p.is_file()} - found
        found |= fresh
        waiting += fresh
    return sorted(found)


def _load_entry(entry: Path, digest: str) -> Built | None:
    """A cached entry, or None. One whose library is not what was written is moved out of the way."""
    try:
        manifest = json.loads((entry / "manifest.json").read_text())
        library = entry / "kernel.so"
        if hashlib.sha256(library.read_bytes()).hexdigest() == manifest["sha256"]:
            os.utime(entry)
            return Built(library, digest, 0.0, manifest["resources"])
    except FileNotFoundError:
        if not entry.exists():
            return None
    except (OSError, ValueError, KeyError, TypeError):
        pass
    _discard(entry)
    return None


def mark_passed(built: Built, what: str) -> None:
    """Leave the mark that this library passed its checks, with `what` was checked. It goes with the entry."""
    mark = {"sha256": hashlib.sha256(built.library.read_bytes()).hexdigest(), "checked": what}
    files.write(built.library.with_name("passed.json"), json.dumps(mark))


def has_passed(built: Built) -> bool:
    """Whether the entry carries the mark, for the library that it has now."""
    try:
        mark = json.loads(built.library.with_name("passed.json").read_text())
        return mark["sha256"] == hashlib.sha256(built.library.read_bytes()).hexdigest()
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _discard(entry: Path) -> None:
    """Remove an entry. It is renamed first, so that nobody finds half of it."""
    aside = Path(tempfile.mkdtemp(prefix=".old-", dir=entry.parent))
    with contextlib.suppress(OSError):  # somebody else was first
        entry.rename(aside / "entry")
    shutil.rmtree(aside, ignore_errors=True)


def _compile(entry: Path, digest: str, command: list[str]) -> Built:
    work = Path(tempfile.mkdtemp(prefix=".new-", dir=entry.parent))
    try:
        library = work / "kernel.so"
        started = time.perf_counter()
        output, code = _run_compiler([*command, "-o", str(library)], work)
        seconds = time.perf_counter() - started
        if code or not library.exists():
            raise _compile_error(entry, command, output, code)
        manifest: dict[str, Any] = {
            "sha256": hashlib.sha256(library.read_bytes()).hexdigest(),
            "seconds": seconds,
            "resources": _resources(output, library),
        }
        source = next(a for a in command if a.endswith((".hip", ".cpp")))
        shutil.copy(source, work)
        (work / "command.txt").write_text(" ".join(command) + "\n")
        (work / "log.txt").write_text(output)
        (work / "manifest.json").write_text(json.dumps(manifest))
        try:
            work.rename(entry)
        except OSError:
            if not entry.exists():
                raise
        return Built(entry / "kernel.so", digest, seconds, manifest["resources"])
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _run_compiler(command: list[str], work: Path) -> tuple[str, int]:
    """Run in a private directory with a minimal environment, so that nothing outside the digest steers the compiler."""
    kept = ("PATH", "HOME", "CUDA_HOME", "ROCM_PATH", "HIP_PATH", "LD_LIBRARY_PATH")
    environment = {k: os.environ[k] for k in kept if k in os.environ} | {"TMPDIR": str(work), "LANG": "C"}
    try:
        done = subprocess.run(
            command,
            cwd=work,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=COMPILE_LIMIT_S,
        )
    except subprocess.TimeoutExpired:
        return f"error: the compiler took more than {COMPILE_LIMIT_S} s", 1
    return done.stdout.decode(errors="replace"), done.returncode


def _compile_error(entry: Path, command: list[str], output: str, code: int) -> CompileError:
    """The first error of a failed build; the log is kept beside the cache's entries."""
    failed = entry.parent / "failed"
    failed.mkdir(mode=0o700, exist_ok=True)
    log = failed / f"{entry.name}.log"
    log.write_text(" ".join(command) + "\n\n" + output)
    first = re.search(r"^.*\b(?:fatal error|error)\b.*$", output, re.MULTILINE)
    reason = first.group(0).strip() if first else f"the compiler ended with exit code {code}"
    return CompileError(reason[:500], " ".join(command)[:2000], str(log))


def _resources(output: str, library: Path) -> dict[str, int]:
    """What the AMD code object in `library` states, else what `ptxas -v` printed; the largest of a file's kernels."""
    with contextlib.suppress(CodeObjectError):
        return code_object.resources(library)
    patterns = {
        "vgprs": r"Used (\d+) registers",
        "spills": r"(\d+) bytes spill stores",
        "lds_bytes": r"(\d+) bytes smem",
    }
    found = {name: [int(v) for v in re.findall(pattern, output)] for name, pattern in patterns.items()}
    if found["vgprs"] and not found["lds_bytes"]:
        found["lds_bytes"] = [0]
    return {name: max(values) for name, values in found.items() if values}


def _entries() -> list[Path]:
    return [p for p in cache_dir().iterdir() if p.is_dir() and not p.name.startswith(".") and p.name != "failed"]


def _size(path: Path) -> int:
    return sum(f.stat().st_size for f in path.rglob("*") if f.is_file())


def cache_size() -> int:
    """Bytes that the cache takes."""
    return _size(cache_dir())


def evict(limit: int = CACHE_LIMIT_BYTES) -> int:
    """Remove what was not used for longest until the cache is below `limit` bytes; returns the bytes removed."""
    sizes = {entry: _size(entry) for entry in sorted(_entries(), key=lambda p: p.stat().st_mtime)}
    excess, removed = sum(sizes.values()) - limit, 0
    for entry, size in sizes.items():
        if removed >= excess:
            break
        _discard(entry)
        removed += size
    return removed


def clean(failed_only: bool = False) -> int:
    """Empty the cache, or only its logs of failed builds. Returns the bytes freed."""
    before = cache_size()
    shutil.rmtree(cache_dir() / "failed", ignore_errors=True)
    for entry in [] if failed_only else _entries():
        _discard(entry)
    for rest in [] if failed_only else cache_dir().glob(".new-*"):
        shutil.rmtree(rest, ignore_errors=True)
    emulation_runtime.cache_clear()
    return before - cache_size()


def describe(backend: str) -> dict[str, Any]:
    """Compiler, version and flags of a backend, for the provenance of a run."""
    target = backends.get(backend)
    return {
        "path": target.compiler(),
        "version": target.version(),
        "arch": target.default_arch(),
        "flags": target.flags(target.default_arch()),
    }
