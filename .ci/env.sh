#!/usr/bin/env bash
# Create .venv with the versions of constraints.txt and this package, editable.
#
#   .ci/env.sh           torch comes from constraints.txt
#   .ci/env.sh system    torch is the one that $PYTHON (python3) can import: for CUDA and ROCm builds
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
mode=${1:-pinned}
python=${PYTHON:-python3}

die() { printf 'make env: %s\n' "$*" >&2; exit 3; }

case $mode in pinned | system) ;; *) die "TORCH=$mode is not known; use TORCH=system, or leave it out" ;; esac
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
    die "$python is not Python 3.11 or newer; name one: make env PYTHON=python3.12"

options=()
if [ "$mode" = system ]; then
    torch_home=$("$python" -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parents[1])' 2>/dev/null) ||
        die "TORCH=system: $python cannot import torch; install it there, or run make env PYTHON=..."
    options+=(--system-site-packages)
fi

# pip where python3-venv is missing: Debian has it as a wheel, in a package that anyone may unpack.
bring_pip() {
    local unpacked wheels pip
    unpacked=$(mktemp -d)
    .ci/apt_unpack.sh "$unpacked" python3-pip-whl ||
        die "$python has no ensurepip; install it, on Debian: apt-get install python3-venv"
    wheels=$unpacked/usr/share/python-wheels
    pip=$(echo "$wheels"/pip-*.whl)
    .venv/bin/python "$pip/pip" install --quiet --no-index --find-links "$wheels" pip
    rm -rf "$unpacked"
}

rm -rf .venv
if "$python" -c 'import ensurepip' 2>/dev/null; then
    "$python" -m venv "${options[@]}" .venv
else
    "$python" -m venv --without-pip "${options[@]}" .venv
    bring_pip
fi

if [ "$mode" = system ] && ! .venv/bin/python -c 'import torch' 2>/dev/null; then
    # $python is itself a virtual environment: its packages are not "system" to a new one.
    echo "$torch_home" > "$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/torch_of_system.pth"
    .venv/bin/python -c 'import torch' || die "TORCH=system: torch in $torch_home cannot be imported from .venv"
fi

install=(.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-compile)
if [ "$mode" = pinned ]; then
    "${install[@]}" -c constraints.txt hatchling editables
    "${install[@]}" -c constraints.txt --no-build-isolation -e '.[dev]'
else
    # All pins but torch, also those that the system has: their commands belong into .venv/bin.
    grep -v '^torch==' constraints.txt > .venv/constraints.txt
    "${install[@]}" --ignore-installed -r .venv/constraints.txt
    "${install[@]}" --no-deps --no-build-isolation -e .
    .venv/bin/python - << 'EOF' || die "TORCH=system: install a torch that pyproject.toml allows"
import sys
from importlib.metadata import requires, version
from packaging.requirements import Requirement
(needed,) = [r for r in map(Requirement, requires("cc1d_lab")) if r.name == "torch"]
sys.exit(not needed.specifier.contains(version("torch"), prereleases=True) and f"torch {version('torch')} is not {needed}")
EOF
fi
.venv/bin/python -c 'import sys, torch; print(f"make env: .venv has Python {sys.version.split()[0]}, torch {torch.__version__}")'
touch ".venv/.stamp-$mode"
