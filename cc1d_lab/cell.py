"""Cell: what is evaluated. A cell is variant x backend x arch x case x tunables; a group is the cells of one case."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field, replace

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
    _: KW_ONLY
    program: str = ""  # of the pipeline study (see `programs`); '' for the kernel alone
    verify: bool = False  # whether that program computes on the host too, and compares
    toolchain: str = ""

    @property
    def cell_id(self) -> str:
        """Twelve hex digits that stay the same from run to run."""
        identity: list[object] = [
            self.variant,
            self.backend,
            self.arch,
            self.case.to_dict(),
            dict(sorted(self.tunables.items())),
        ]
        identity += [self.program, self.verify] if self.program else []
        identity += [self.toolchain] if self.toolchain else []
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:12]

    @property
    def group_key(self) -> tuple[str, str, str, Case, bool | None]:
        """Cells with the same key are measured together. The layout on the device is a program's own affair."""
        if not self.program:
            return (self.toolchain, self.backend, self.arch, self.case, None)
        return (self.toolchain, self.backend, self.arch, replace(self.case, layout="channel_first"), self.verify)

    def title(self) -> str:
        """A one-line name for progress and logs."""
        knobs = " ".join(f"{k}={v}" for k, v in self.tunables.items())
        parts = (self._program_title(), self.variant, self.backend, self.arch, self.case.title(), knobs, self.toolchain)
        return " ".join(p for p in parts if p)

    def _program_title(self) -> str:
        return f"{self.program}{' verified' if self.verify else ''}:" if self.program else ""
