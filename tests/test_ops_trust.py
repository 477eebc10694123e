"""What the operator loads has passed its checks elsewhere: a bad kernel is an error, not garbage or a dead process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from planted import Planted, plant

from cc1d_lab import Case, Cell, build, causal_conv1d_fn, causal_conv1d_fn_ref, explain
from cc1d_lab.errors import CheckError, WorkerError
from cc1d_lab.ops import launch, trust

X, WEIGHT, BIAS = torch.randn(2, 6, 50), torch.randn(6, 4), torch.randn(6)
WRONG = " " * 12 + "acc_t sum = parameters.bias(0);", "acc_t sum = 0;"  # where no sequences are packed
CRASH = "const bool exists = ", "*reinterpret_cast<volatile int*>(8) = 1; const bool exists = "


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    launch.forget()
    yield
    launch.forget()


def bad_kernels(folder: Path, monkeypatch: pytest.MonkeyPatch, variant: str, change: tuple[str, str]) -> None:
    kernels = plant(Planted("bad", variant, *change, Case(), f"{variant}.hip"), folder)
    monkeypatch.setenv("CC1D_KERNELS", str(kernels))


@pytest.mark.parametrize(
    ("change", "says"), [(WRONG, "wrong .* elements of out are outside"), (CRASH, "crashed .*SIGSEGV")]
)
def test_auto_passes_over_a_bad_kernel_with_a_warning(
    change: tuple[str, str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert explain(X, WEIGHT, BIAS).variant == "fwd_register"
    bad_kernels(tmp_path, monkeypatch, "fwd_register", change)
    with pytest.warns(RuntimeWarning, match=f"variant fwd_register on cpu .*{says}.* another variant is taken"):
        out = causal_conv1d_fn(X, WEIGHT, BIAS)
    torch.testing.assert_close(out, causal_conv1d_fn_ref(X, WEIGHT, BIAS))
    found = explain(X, WEIGHT, BIAS)
    assert found.variant == "fwd_shared_memory"
    assert "not run here" in found.others["fwd_register"]
    causal_conv1d_fn(X[:, :, :40], WEIGHT, BIAS)  # other sizes: neither tried again nor warned of


def test_a_bad_kernel_that_is_named_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad_kernels(tmp_path, monkeypatch, "fwd_register", WRONG)
    for _ in range(2):
        with pytest.raises(
            CheckError, match=r"variant fwd_register .* not run here; `cc1d check --variant fwd_register"
        ):
            causal_conv1d_fn(X, WEIGHT, BIAS, variant="fwd_register")
    monkeypatch.setenv("CC1D_UNCHECKED", "1")
    launch.forget()
    out = causal_conv1d_fn(X, WEIGHT, BIAS, variant="fwd_register")
    torch.testing.assert_close(out, causal_conv1d_fn_ref(X, WEIGHT))  # without its bias


def test_a_bad_backward_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = {"backend": "cpu", "arch": "wave32", "op": "bwd", "layout": "channel_first", "dtype": "float32", "width": 4}
    entry |= {"variant": "bwd_two_stage", "tunables": {}, "outputs": 600, "time_us": 1.0}
    (tmp_path / "table.json").write_text(json.dumps([entry]))
    monkeypatch.setenv("CC1D_TABLE", str(tmp_path / "table.json"))
    bad_kernels(tmp_path, monkeypatch, "bwd_two_stage", ("batch < p.batch;", "batch < 1;"))
    mine, theirs = (X.clone().requires_grad_() for _ in range(2))
    weights = [WEIGHT.clone().requires_grad_() for _ in range(2)]
    with pytest.warns(RuntimeWarning, match="variant bwd_two_stage .* elements of dweight"):
        causal_conv1d_fn(mine, weights[0], BIAS).sum().backward()
    causal_conv1d_fn_ref(theirs, weights[1], BIAS).sum().backward()
    torch.testing.assert_close(mine.grad, theirs.grad)
    torch.testing.assert_close(weights[0].grad, weights[1].grad)


def test_what_cannot_be_tried_is_not_blamed_on_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"status": "unsupported", "reason": "CUDA error: out of memory"}
    monkeypatch.setattr(trust.Worker, "try_out", lambda worker, cell: row)
    monkeypatch.setattr(build, "has_passed", lambda built: False)
    with pytest.raises(
        WorkerError, match=r"no process of its own can do that now .CUDA error: out of memory.* CC1D_UNCH"
    ):
        causal_conv1d_fn(X, WEIGHT, BIAS)
    assert explain(X, WEIGHT, BIAS).variant == "fwd_register"


def test_a_library_is_tried_once_and_carries_the_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    causal_conv1d_fn(X, WEIGHT, BIAS, variant="fwd_naive")
    built = build.build_cell(Cell("fwd_naive", "cpu", Case(activation="none"), arch="wave32"))
    assert build.has_passed(built)
    launch.forget()
    with monkeypatch.context() as m:
        m.setattr(trust, "Worker", None)
        causal_conv1d_fn(X, WEIGHT, BIAS, variant="fwd_naive")
    mark = built.library.with_name("passed.json")
    mark.write_text(mark.read_text().replace('"sha256": "', '"sha256": "0'))
    assert not build.has_passed(built), "a mark is of one library alone"
    launch.forget()
    causal_conv1d_fn(X, WEIGHT, BIAS, variant="fwd_naive")
    assert build.has_passed(built)


SCRIPT = """
import torch
from cc1d_lab import causal_conv1d_fn
print("begins")
causal_conv1d_fn(torch.ones(1, 2, 9), torch.ones(2, 4))
"""


def test_a_script_without_a_main_guard_runs_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    bad_kernels(
        tmp_path, monkeypatch, "fwd_register", ("// One or two", "// One or  two")
    )  # harmless, and not tried yet
    done = subprocess.run(
        [sys.executable, str(tmp_path / "script.py")], capture_output=True, text=True, timeout=120, env=os.environ
    )
    assert (done.returncode, done.stdout) == (0, "begins\n"), done.stderr[-500:]
