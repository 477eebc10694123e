"""Params is one struct in two languages: every field lies at the same offset in C++ and in Python."""

from __future__ import annotations

import ctypes
import json
import re
import subprocess
from pathlib import Path

import pytest

from cc1d_lab import backends, build, kernel, paths, variants
from cc1d_lab.case import Case
from cc1d_lab.errors import LaunchError
from cc1d_lab.kernel import Params

HEADER = paths.kernels_dir() / "include" / "cc1d" / "params.h"


def declared(header: str) -> list[str]:
    """Names of the fields of Params, in order, as the header declares them."""
    body = re.search(r"struct Params \{(.*?)\n\};", header, re.DOTALL)
    assert body
    code = re.sub(r"//.*", "", body[1])
    return [name for line in code.split(";") for name in re.findall(r"\b(\w+)\s*(?=,|$)", line.strip())]


def offsets(header: Path, names: list[str], work: Path) -> dict[str, int]:
    """Offset of each field and, as '', the size of the struct: from a program that the C++ compiler makes."""
    lines = "".join(f'  printf(",\\"{n}\\": %zu", offsetof(Params, {n}));\n' for n in names)
    program = f'#include "{header}"\n#include <stddef.h>\n#include <stdio.h>\n'
    program += f'int main() {{\n  printf("{{\\"\\": %zu", sizeof(Params));\n{lines}  printf("}}");\n}}\n'
    (work / "offsets.cpp").write_text(program)
    compiler = backends.get("cpu").compiler()
    subprocess.run([compiler, "-std=c++17", str(work / "offsets.cpp"), "-o", str(work / "offsets")], check=True)
    return json.loads(subprocess.run([str(work / "offsets")], capture_output=True, check=True).stdout)


def mirrored() -> dict[str, int]:
    return {"": ctypes.sizeof(Params)} | {name: getattr(Params, name).offset for name, _ in Params._fields_}


def test_every_field_has_the_same_offset(tmp_path: Path) -> None:
    names = declared(HEADER.read_text())
    assert names == [name for name, _ in Params._fields_]
    assert offsets(HEADER, names, tmp_path) == mirrored()


def test_a_swapped_field_is_found(tmp_path: Path) -> None:
    text = HEADER.read_text()
    swapped = text.replace("int64_t batch, dim, seqlen;", "int64_t dim, batch, seqlen;")
    assert swapped != text
    (tmp_path / "params.h").write_text(swapped)
    names = declared(swapped)
    assert names != [name for name, _ in Params._fields_]
    assert offsets(tmp_path / "params.h", names, tmp_path) != mirrored()


def test_a_library_of_another_struct_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    built = build.build(variants.get("empty"), Case(), {}, "cpu")

    class Longer(Params):
        _fields_ = [("more", ctypes.c_int64)]  # noqa: RUF012

    monkeypatch.setattr(kernel, "Params", Longer)
    with pytest.raises(LaunchError, match="cc1d clean"):
        kernel.load(built.library)
