"""cc1d_lab: which causal conv1d algorithm, at which shape, on which GPU, at what error?

Names are loaded on first use (PEP 562): `import cc1d_lab` alone loads neither torch, pandas nor matplotlib.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "Case": "case",
    "Cell": "cell",
    "VARIANTS": "variants",
    "Variant": "variants",
    "evaluate": "evaluation",
    "load_experiment": "experiment",
    "load_rows": "results",
    "causal_conv1d_fn": "ops",
    "causal_conv1d_fn_ref": "ops",
    "causal_conv1d_ref": "ops",
    "causal_conv1d_update": "ops",
    "causal_conv1d_update_ref": "ops",
    "causal_conv1d_varlen_states": "ops",
    "causal_conv1d_varlen_states_ref": "ops",
    "explain": "ops",
    "open_run": "runner",
    "render_report": "report",
    "run_experiment": "runner",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
