"""Where kernels, notebooks and experiments lie: beside the package in a checkout, inside it when installed."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import ToolchainError

PACKAGE = Path(__file__).resolve().parent


def checkout() -> Path | None:
    """Root of the checkout that this package runs from, or None when it is installed."""
    root = PACKAGE.parent
    return root if (root / "pyproject.toml").is_file() and (root / "hip_kernels").is_dir() else None


def kernels_dir() -> Path:
    """Folder of the `.hip` files; its `include` holds the headers. CC1D_KERNELS names another, to try changes in."""
    return Path(os.environ.get("CC1D_KERNELS") or _find("hip_kernels"))


def notebooks_dir() -> Path:
    """Folder of the notebooks."""
    return _find("notebooks")


def experiments_dir() -> Path:
    """Folder of the experiment files that come with the package."""
    return _find("experiments")


def _find(name: str) -> Path:
    # What the wheel carries comes first: site-packages may hold a foreign folder called `notebooks`.
    for folder in (PACKAGE / "_data" / name, PACKAGE.parent / name):
        if folder.is_dir():
            return folder
    raise ToolchainError(f"{name}: not found beside or inside {PACKAGE}; reinstall cc1d_lab or run it from a checkout")
