"""`cc1d doctor` on a ROCm machine: what it finds, and each fault with its remedy. Every fault is set up for real."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from rocm_stand_in import Rocm, add_driver, bare_machine, make_rocm, rocm_torch

from cc1d_lab import backends, rocm
from cc1d_lab.cli import main


def cc1d(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rocm:
    """A machine on which all is well: ROCm, its torch, a driver and one MI300X."""
    bare_machine(monkeypatch, tmp_path)
    made = make_rocm(tmp_path / "opt" / "rocm-6.2.0", "gfx942")
    add_driver(tmp_path, 0, 90402)
    rocm_torch(monkeypatch, "gfx942")
    monkeypatch.setenv("ROCM_PATH", str(made.root))
    return made


def found() -> list[tuple[str, str]]:
    """(what, remedy) of every problem that the doctor names."""
    told = json.loads(cc1d("doctor", "--json").stdout)["rocm"]["problems"]
    return [(p["what"], p["remedy"]) for p in told]


def test_nothing_is_wrong_where_all_is_well(machine: Rocm) -> None:
    done = cc1d("doctor", "--json")
    assert done.exit_code == 0
    told = json.loads(done.stdout)
    assert told["rocm"] == {
        "hipcc": str(machine.root / "bin" / "hipcc"),
        "rocm": "6.2.0-66",
        "torch": torch.__version__,
        "torch_hip": "6.2.41133-dd7f95766",
        "devices": ["gfx942"],
        "visible": ["gfx942"],
        "problems": [],
    }
    (amd,) = [b for b in told["backends"] if b["name"] == "amd"]
    assert (amd["can_run"], amd["arch"], amd["device"]) == (True, "gfx942", "AMD Instinct MI300X")
    assert amd["compiler"] == told["rocm"]["hipcc"]


# --- S1's list of what goes wrong ------------------------------------------------------------------------------------


def test_no_hipcc(machine: Rocm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ROCM_PATH")
    machine.root.rename(machine.root.with_name("elsewhere"))
    ((what, remedy),) = found()
    assert what == "hipcc not found"
    assert "set ROCM_PATH" in remedy
    assert "make tools" in remedy


def test_rocm_path_is_not_set_where_it_has_to_be(machine: Rocm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ROCM_PATH")
    ((what, remedy),) = found()
    assert what == "hipcc not found"
    assert f"export ROCM_PATH={machine.root}" in remedy


@pytest.mark.parametrize("variable", ["ROCM_PATH", "HIP_PATH"])
def test_a_path_without_hipcc(machine: Rocm, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv("PATH", f"{machine.root}/bin:/usr/bin:/bin")
    monkeypatch.setenv(variable, "/nowhere")
    ((what, remedy),) = found()
    assert what == f"{variable} is /nowhere, which has no bin/hipcc"
    assert "unset it" in remedy
    assert rocm.hipcc() == str(machine.root / "bin" / "hipcc"), "the one on PATH is taken"


def test_two_installations_contradict_each_other(
    machine: Rocm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_rocm(tmp_path / "opt" / "rocm-5.7.0")
    monkeypatch.setenv("HIP_PATH", str(other.root))
    ((what, remedy),) = found()
    assert "name two installations" in what
    assert "unset HIP_PATH" in remedy
    # The usual pair is one installation by two names.
    (tmp_path / "opt" / "rocm").symlink_to(machine.root)
    monkeypatch.setenv("HIP_PATH", str(tmp_path / "opt" / "rocm"))
    assert found() == []


def test_no_torch(machine: Rocm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    ((what, remedy),) = found()
    assert what == "torch is not installed"
    assert "ROCm build of torch" in remedy
    assert "torch is not installed" in cc1d("doctor").output


@pytest.mark.parametrize(("cuda", "kind"), [("12.8", "a CUDA build (CUDA 12.8)"), (None, "a CPU build")])
def test_a_torch_that_is_not_for_rocm(
    machine: Rocm, monkeypatch: pytest.MonkeyPatch, cuda: str | None, kind: str
) -> None:
    rocm_torch(monkeypatch)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    ((what, remedy),) = found()
    assert kind in what
    assert "ROCm build of torch" in remedy


def test_a_torch_of_another_rocm(machine: Rocm, monkeypatch: pytest.MonkeyPatch) -> None:
    rocm_torch(monkeypatch, "gfx942", hip="7.0.51831")
    ((what, remedy),) = found()
    assert what.endswith("was built for HIP 7.0.51831, and ROCm here is 6.2.0-66")
    assert "ROCm 7.0" in remedy


def test_no_driver(machine: Rocm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kfd").unlink()
    (what, remedy), *_ = found()
    assert "is missing" in what
    assert "modprobe amdgpu" in remedy


def test_a_device_that_may_not_be_opened(machine: Rocm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rocm.os, "access", lambda path, mode: path != rocm.DRIVER)
    ((what, remedy),) = found()
    assert "may not be opened" in what
    assert "usermod -aG render" in remedy


def test_a_driver_without_a_device(machine: Rocm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nodes" / "1" / "properties").unlink()
    machine.install()
    rocm_torch(monkeypatch)
    ((what, remedy),) = found()
    assert "neither the driver nor rocm_agent_enumerator names a GPU" in what
    assert "rocminfo" in remedy


def test_a_device_that_torch_does_not_see(machine: Rocm, monkeypatch: pytest.MonkeyPatch) -> None:
    rocm_torch(monkeypatch)
    ((what, remedy),) = found()
    assert "the driver names gfx942" in what
    assert "driver" in remedy


@pytest.mark.parametrize(
    "variables",
    [
        {"HIP_VISIBLE_DEVICES": "1"},
        {"HIP_VISIBLE_DEVICES": ""},
        {"ROCR_VISIBLE_DEVICES": "-1"},
        {"CUDA_VISIBLE_DEVICES": "3"},
    ],
    ids=str,
)
def test_every_device_is_hidden(machine: Rocm, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
        ((what, remedy),) = found()
        assert f"{name}={value!r} hides all 1" in what
        assert remedy.startswith(f"unset {name}")


def test_rocr_and_hip_contradict_each_other(machine: Rocm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_driver(tmp_path / "two", 0, 90402, 90402)
    monkeypatch.setattr(rocm, "TOPOLOGY", tmp_path / "two" / "nodes")
    monkeypatch.setenv("ROCR_VISIBLE_DEVICES", "1")
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "1")
    ((what, remedy),) = found()
    assert "ROCR_VISIBLE_DEVICES='1' and HIP_VISIBLE_DEVICES='1' hides all 2" in what
    assert "count what ROCR_VISIBLE_DEVICES leaves" in remedy


def test_hip_and_cuda_contradict_each_other(machine: Rocm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    ((what, remedy),) = found()
    assert "contradict each other" in what
    assert "unset CUDA_VISIBLE_DEVICES" in remedy


@pytest.mark.parametrize("variable", rocm.ARCH_VARIABLES)
def test_an_arch_that_is_none(machine: Rocm, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "gfx94")
    ((what, remedy),) = found()
    assert what == f"{variable}=gfx94 is not an arch of this package (did you mean 'gfx942'?)"
    assert "gfx90a" in remedy


@pytest.mark.parametrize("variable", rocm.ARCH_VARIABLES)
def test_an_arch_that_is_not_the_devices(machine: Rocm, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "gfx1100")
    ((what, remedy),) = found()
    assert what == f"{variable}=gfx1100, but the device here is gfx942"
    assert remedy == f"unset {variable}, or set it to gfx942"


def test_arch_variables_contradict_each_other(machine: Rocm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPU_ARCH", "gfx942")
    monkeypatch.setenv("PYTORCH_ROCM_ARCH", "gfx90a;gfx1100")
    ((what, remedy),) = found()
    assert "contradict" in what
    assert "GPU_ARCH is the one that counts" in remedy
    monkeypatch.setenv("PYTORCH_ROCM_ARCH", "gfx90a;gfx942:sramecc+")
    assert found() == []


def test_a_device_that_the_kernels_are_not_for(machine: Rocm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nodes" / "1" / "properties").write_text("gfx_target_version 100300\n")
    rocm_torch(monkeypatch, "gfx1030")
    (what, remedy), (no_code, _) = found()
    assert what.startswith("device gfx1030 is not an arch")
    assert "--arch gfx1030" in remedy
    assert "has no code for gfx1030" in no_code


def test_the_doctor_prints_each_problem_with_its_remedy(machine: Rocm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPU_ARCH", "gfx1100")
    lines = cc1d("doctor").output.splitlines()
    at = next(i for i, line in enumerate(lines) if "but the device here is gfx942" in line)
    assert "unset GPU_ARCH" in lines[at + 1]


# --- which arch is built for -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "arch"),
    [(90010, "gfx90a"), (90402, "gfx942"), (90500, "gfx950"), (110000, "gfx1100"), (110501, "gfx1151"),
     (120000, "gfx1200"), (120001, "gfx1201")],
)  # fmt: skip
def test_the_driver_names_the_arch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, arch: str) -> None:
    bare_machine(monkeypatch, tmp_path)
    add_driver(tmp_path, 0, 0, number)
    assert rocm.devices() == [arch]
    assert backends.get("amd").default_arch() == arch


def test_without_a_driver_rocm_agent_enumerator_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare_machine(monkeypatch, tmp_path)
    made = make_rocm(tmp_path / "rocm", "gfx1100", "gfx90a")
    monkeypatch.setenv("PATH", f"{made.root}/bin:/usr/bin:/bin")
    assert rocm.devices() == ["gfx1100", "gfx90a"]
    assert backends.get("amd").default_arch() == "gfx1100"
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "1")
    assert backends.get("amd").default_arch() == "gfx90a"


def test_torchs_device_comes_before_the_drivers_and_a_variable_before_both(
    machine: Rocm, monkeypatch: pytest.MonkeyPatch
) -> None:
    rocm_torch(monkeypatch, "gfx950")
    assert backends.get("amd").default_arch() == "gfx950"
    monkeypatch.setenv("PYTORCH_ROCM_ARCH", "gfx90a:xnack-;gfx942")
    assert backends.get("amd").default_arch() == "gfx90a"
    monkeypatch.setenv("GPU_ARCH", "gfx1201")
    assert backends.get("amd").default_arch() == "gfx1201"


def test_hipccs_own_version_counts_where_the_folder_states_none(machine: Rocm) -> None:
    (machine.root / ".info" / "version").unlink()
    assert rocm.version(rocm.hipcc()).startswith("6.2.41133")
