"""The build cache: built once, never half-written, never loaded when it is not what was written, private."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from cc1d_lab import backends, build, experiment, variants
from cc1d_lab.case import Case
from cc1d_lab.cell import Cell
from cc1d_lab.errors import CacheError, ConfigError, ToolchainError

NAIVE = variants.get("fwd_naive")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("CC1D_CACHE", str(tmp_path / "cache"))
    build.emulation_runtime.cache_clear()
    yield tmp_path / "cache"
    build.emulation_runtime.cache_clear()


@pytest.fixture(scope="module")
def built_runtime(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CC1D_CACHE", str(tmp_path_factory.mktemp("runtime") / "cache"))
        build.emulation_runtime.cache_clear()
        return build.emulation_runtime().library.parents[1]


@pytest.fixture
def with_runtime(built_runtime: Path, cache: Path) -> None:
    """The cache has the emulation's runtime already: most of what the first build takes."""
    shutil.copytree(built_runtime, cache)
    build.emulation_runtime.cache_clear()


def _build(case: Case | None = None, **tunables: int) -> build.Built:
    return build.build(NAIVE, case or Case(), tunables, "cpu")


@pytest.mark.usefixtures("with_runtime")
def test_the_second_build_is_found_and_costs_nothing(cache: Path) -> None:
    first, second = _build(), _build()
    assert first.seconds > 0
    assert second.seconds == 0
    assert first.library == second.library
    assert {p.name for p in first.library.parent.iterdir()} >= {"kernel.so", "command.txt", "log.txt", "fwd_naive.hip"}


@pytest.mark.usefixtures("with_runtime")
def test_a_cell_compiles_within_a_second_and_a_half(cache: Path) -> None:
    _build()
    assert min(_build(Case(width=w)).seconds for w in (2, 3, 5)) < 1.5


@pytest.mark.parametrize(
    "other",
    [
        {"dtype": "float16"},
        {"width": 3},
        {"activation": "none"},
        {"layout": "channel_last"},
        {"weight_dtype": "bfloat16"},
    ],
    ids=lambda d: next(iter(d)),
)
@pytest.mark.usefixtures("with_runtime")
def test_what_is_compiled_in_changes_the_digest(other: dict[str, str]) -> None:
    assert build.build_key(Cell("fwd_naive", "cpu", Case())) != build.build_key(Cell("fwd_naive", "cpu", Case(**other)))
    assert _build().digest != _build(Case(**other)).digest


@pytest.mark.usefixtures("with_runtime")
def test_the_order_of_flags_changes_the_digest() -> None:
    """The last of two that contradict each other wins."""
    on, off = "-ffast-math", "-fno-fast-math"
    built = [
        build.build_cell(Cell("fwd_naive", "cpu", Case(), toolchain=f"{a} {b}")) for a, b in ((on, off), (off, on))
    ]
    assert built[0].digest != built[1].digest


@pytest.mark.usefixtures("with_runtime")
def test_sizes_and_seed_do_not_change_the_digest() -> None:
    assert _build(Case(batch=7, dim=3, seqlen=11, seed=5, bias=False, view="misaligned")).digest == _build().digest


@pytest.mark.usefixtures("with_runtime")
def test_what_a_case_fixes_reaches_the_kernel() -> None:
    wide = Case(1, 8, 9, width=8, dtype="bfloat16", layout="channel_last")
    command = build.build(variants.get("fwd_raster"), wide, {}, "cpu").library.with_name("command.txt").read_text()
    assert "-DCC1D_STEPS=8" in command.split()
    with pytest.raises(ConfigError, match="steps=4"):
        build.build(variants.get("fwd_raster"), wide, {"steps": 4}, "cpu")


@pytest.mark.usefixtures("with_runtime")
def test_a_header_changes_the_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = _build().digest
    kernels = Path(shutil.copytree(build.kernels_dir(), tmp_path / "kernels"))
    monkeypatch.setenv("CC1D_KERNELS", str(kernels))
    assert _build().digest == before, "where the sources lie does not matter"
    (kernels / "include" / "cc1d" / "math.h").open("a").write("// changed\n")
    assert _build().digest != before


def test_a_header_changes_the_digest_of_what_includes_it(tmp_path: Path) -> None:
    names = ("direct.h", "folder/under_a_condition.h", "folder/indirect.h", "elsewhere.h")
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    source = tmp_path / "source.hip"
    lines = ('#include "direct.h"', "#if 0", " # include <folder/under_a_condition.h>", "#endif", "#include <absent.h>")
    source.write_text("\n".join(lines))
    (tmp_path / "folder" / "under_a_condition.h").write_text('#include "indirect.h"\n#include "../direct.h"\n')
    before = build._tree_digest(source)
    for name in names:
        file = tmp_path / name
        file.write_text((text := file.read_text()) + "// changed\n")
        assert (build._tree_digest(source) != before) == (name != "elsewhere.h"), name
        file.write_text(text)


@pytest.mark.parametrize("damage", ["truncate", "flip", "no manifest", "garbage manifest", "empty"])
@pytest.mark.usefixtures("with_runtime")
def test_a_damaged_entry_is_rebuilt(damage: str) -> None:
    library = _build().library
    whole = library.read_bytes()
    match damage:
        case "truncate":
            library.write_bytes(whole[: len(whole) // 2])
        case "flip":
            library.write_bytes(whole[:999] + bytes([whole[999] ^ 1]) + whole[1000:])
        case "no manifest":
            library.with_name("manifest.json").unlink()
        case "garbage manifest":
            library.with_name("manifest.json").write_text("[]")
        case "empty":
            library.write_bytes(b"")
    again = _build()
    assert again.seconds > 0
    assert again.library.stat().st_size == pytest.approx(len(whole), rel=0.1)


def test_many_at_once_build_the_same_thing_without_harm() -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: _build(Case(width=6)).library.read_bytes(), range(8)))
    assert len(set(found)) == 1


def test_two_processes_at_once_are_fine(cache: Path) -> None:
    script = "from cc1d_lab import build, variants; from cc1d_lab.case import Case\n"
    script += "print(build.build(variants.get('fwd_naive'), Case(width=7), {}, 'cpu').digest)"
    running = [subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert len({p.communicate(timeout=60)[0] for p in running}) == 1
    assert all(p.returncode == 0 for p in running)
    assert not list(cache.glob(".new-*"))


def test_the_cache_is_private(cache: Path) -> None:
    _build()
    assert cache.stat().st_mode & 0o777 == 0o700
    cache.chmod(0o777)
    with pytest.raises(CacheError, match=r"chmod 700"):
        _build()


def test_a_cache_that_is_a_link_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    monkeypatch.setenv("CC1D_CACHE", str(tmp_path / "link"))
    with pytest.raises(CacheError):
        build.cache_dir()


def test_clean_frees_what_was_built(cache: Path) -> None:
    _build()
    assert build.clean() > 10_000
    assert _build().seconds > 0


def test_the_least_recently_used_goes_first() -> None:
    old, new = _build(Case(width=2)), _build(Case(width=3))
    os.utime(old.library.parent, (0, 0))
    build.evict(build.cache_size() - 1000)
    assert not old.library.exists()
    assert new.library.exists()


def test_a_missing_compiler_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ToolchainError, match=r"tried no-such-compiler.*CXX"):
        _build()
    assert "CXX" in backends.get("cpu").can_build()


def test_a_baseline_has_nothing_to_build() -> None:
    with pytest.raises(ConfigError, match="nothing to build"):
        build.build(variants.get("torch_conv1d"), Case(), {}, "cpu")


def test_equal_builds_are_made_once() -> None:
    cells = [Cell("fwd_naive", "cpu", replace(Case(), seqlen=n)) for n in range(1, 9)]
    assert build.count(cells) == len(list(build.build_all(cells))) == 1


needs_nvcc = pytest.mark.skipif(bool(backends.get("nvidia").can_build()), reason=backends.get("nvidia").can_build())


@needs_nvcc
@pytest.mark.full
def test_every_quick_cell_compiles_for_nvidia() -> None:
    cells = [c for c in experiment.load("quick").cells("nvidia") if not variants.why_not(*_of(c))]
    outcomes = list(build.build_all([replace(c, arch="sm_90") for c in cells]))
    assert len(outcomes) > 20
    assert [str(o) for _, o in outcomes if isinstance(o, Exception)] == []


def _of(cell: Cell) -> tuple[variants.Variant, Case, str]:
    return variants.get(cell.variant), cell.case, cell.backend


@needs_nvcc
def test_a_kernel_compiles_for_nvidia_without_spills() -> None:
    outcome = build.build(NAIVE, Case(dtype="bfloat16"), {}, "nvidia", "sm_90")
    assert outcome.resources["spills"] == 0
    assert outcome.resources["vgprs"] > 0
