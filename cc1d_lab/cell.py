"""Cell: what is evaluated. A cell is variant x backend x arch x case x tunables; a group is the cells of one case."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .case import Case


@dataclass(frozen=True)
class Cell:
    """One thing to build, check and time. `arch` is '' for the default of the backend.

    `toolchain` is what is compiled with: '' for the compiler and flags of the backend, else `[COMPILER] [FLAGS]`, such
    as `clang++ -O1` or `-ffast-math`: another compiler, and flags after those of the backend.
    """

    variant: str
    backend: str
    case: Case
    tunables: Mapping[str, int] = field(default_factory=dict)
    arch: str = ""
    toolchain: str = ""

    @property
    def cell_id(self) -> str:
        """Twelve hex digits that stay the same from run to run."""
        identity: list[Any] = [self.variant, self.backend, self.arch, self.case.to_dict()]
        identity += [dict(sorted(self.tunables.items())), *([self.toolchain] if self.toolchain else [])]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:12]

    @property
    def group_key(self) -> tuple[str, str, str, Case]:
        """Cells with the same key are measured together."""
        return (self.toolchain, self.backend, self.arch, self.case)

    def title(self) -> str:
        """A one-line name for progress and logs."""
        knobs = " ".join(f"{k}={v}" for k, v in self.tunables.items())
        parts = (self.variant, self.backend, self.arch, self.case.title(), knobs, self.toolchain)
        return " ".join(p for p in parts if p)
