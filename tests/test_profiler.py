"""The profile of a cell: files as rocprofv3, ncu and torch.profiler write them, verdicts, pictures, the verb."""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner, Result
from rocm_stand_in import add_driver, bare_machine, make_rocm, rocm_torch

from cc1d_lab import backends, build, oracle, paths, plots, profiler, reference, variants
from cc1d_lab.case import Case
from cc1d_lab.cell import Cell
from cc1d_lab.cli import main
from cc1d_lab.errors import ConfigError, StoreError, ToolchainError
from cc1d_lab.profiler import readers, run, target

DATA = Path(__file__).parent / "data"
CELL = Cell("fwd_register", "amd", Case(batch=2, dim=64, seqlen=256, dtype="bfloat16"), arch="gfx942")


def write_csv(path: Path, text: str) -> None:
    """Rows of words, as rocprofv3 writes them: names and texts in quotes, numbers without."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [line.split("|") for line in text.strip().splitlines()]
    quoted = [",".join(w if w.replace(".", "").isdigit() else f'"{w}"' for w in row) for row in rows]
    path.write_text("\n".join(quoted) + "\n")


# The columns of ROCm 7; those of 6.2 are a part of them, in another order.
KERNELS_7 = """
Kind|Agent_Id|Queue_Id|Stream_Id|Thread_Id|Dispatch_Id|Kernel_Id|Kernel_Name|Correlation_Id|Start_Timestamp|\
End_Timestamp|Private_Segment_Size|Group_Segment_Size|Workgroup_Size_X|Workgroup_Size_Y|Workgroup_Size_Z|\
Grid_Size_X|Grid_Size_Y|Grid_Size_Z
KERNEL_DISPATCH|Agent 4|1|1|77|1|11|fwd_register|5|1000|4000|0|0|256|1|1|1024|1|1
KERNEL_DISPATCH|Agent 4|1|1|77|2|11|fwd_register|6|5000|10000|0|0|256|1|1|1024|1|1
KERNEL_DISPATCH|Agent 4|1|1|77|3|12|\
void at::native::vectorized_elementwise_kernel<4, at::X<float>, std::array<char*, 1ul> >(int, X)\
|7|11000|12000|0|0|256|1|1|1024|1|1
"""
KERNELS_6 = """
Kind|Agent_Id|Queue_Id|Kernel_Id|Kernel_Name|Correlation_Id|Start_Timestamp|End_Timestamp
KERNEL_DISPATCH|1|1|11|fwd_register.kd|5|1000|4000
KERNEL_DISPATCH|1|1|11|fwd_register.kd|6|5000|10000
KERNEL_DISPATCH|1|1|12|vectorized_elementwise_kernel|7|11000|12000
"""
COPIES = """
Kind|Direction|Source_Agent_Id|Destination_Agent_Id|Correlation_Id|Start_Timestamp|End_Timestamp
MEMORY_COPY|MEMORY_COPY_HOST_TO_DEVICE|Agent 0|Agent 4|3|0|70000
MEMORY_COPY|MEMORY_COPY_DEVICE_TO_HOST|Agent 4|Agent 0|9|80000|100000
"""
API = """
Domain|Function|Process_Id|Thread_Id|Correlation_Id|Start_Timestamp|End_Timestamp
HIP_RUNTIME_API|hipMalloc|77|77|1|0|200000
HIP_RUNTIME_API|hipMemcpyWithStream|77|77|3|200000|900000
HIP_RUNTIME_API|hipLaunchKernel|77|77|5|900000|950000
HIP_RUNTIME_API|hipLaunchKernel|77|77|6|950000|1000000
"""
KERNEL_STATS = """
Name|Calls|TotalDurationNs|AverageNs|Percentage|MinNs|MaxNs|StdDev
fwd_register|2|8000|4000.0|88.89|3000|5000|1414.2
vectorized_elementwise_kernel|1|1000|1000.0|11.11|1000|1000|0.0
"""
COUNTER_COLUMNS = (
    "Correlation_Id|Dispatch_Id|Agent_Id|Queue_Id|Process_Id|Thread_Id|Grid_Size|Kernel_Id|Kernel_Name|Workgroup_Size|"
    "LDS_Block_Size|Scratch_Size|VGPR_Count|Accum_VGPR_Count|SGPR_Count|Counter_Name|Counter_Value|Start_Timestamp|"
    "End_Timestamp"
)


def write_counters(path: Path, start: int = 0, duration: int = 4000, **values: float) -> None:
    """A counter_collection.csv with two dispatches of fwd_register, which last `duration` ns."""
    rows = [
        f"{i}|{i}|Agent 4|1|77|77|262144|11|fwd_register|256|0|0|24|0|32|{name}|{value}|{start}|{start + duration}"
        for name, value in values.items()
        for i in (1, 2)
    ]
    write_csv(path, "\n".join([COUNTER_COLUMNS, *rows]))


def write_rocprof(folder: Path, kernels: str = KERNELS_7) -> None:
    """What the four passes of a profile leave."""
    write_csv(folder / "times" / "cell_kernel_trace.csv", kernels)
    write_csv(folder / "times" / "cell_memory_copy_trace.csv", COPIES)
    write_csv(folder / "times" / "cell_hip_api_trace.csv", API)
    write_csv(folder / "times" / "cell_kernel_stats.csv", KERNEL_STATS)
    # 4 us at 5.3 TB/s are 21.2 MB; 20 MiB were moved.
    write_counters(folder / "FETCH" / "host" / "cell_counter_collection.csv", FETCH_SIZE=10240.0, WRITE_SIZE=10240.0)
    write_counters(folder / "MEM" / "cell_counter_collection.csv", MemUnitBusy=55.0, MemUnitStalled=3.0)
    write_counters(folder / "VALU" / "cell_counter_collection.csv", VALUBusy=21.0, OccupancyPercent=80.0)


# --- readers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernels", [KERNELS_7, KERNELS_6], ids=["ROCm 7", "ROCm 6.2"])
def test_rocprofv3s_traces_are_read(tmp_path: Path, kernels: str) -> None:
    write_rocprof(tmp_path, kernels)
    found = profiler.read(tmp_path)
    assert [(s.name, s.calls, s.total_us) for s in found.kernels] == [
        ("fwd_register", 2, 8.0),
        ("vectorized_elementwise_kernel", 1, 1.0),
    ]
    assert [(s.name, s.total_us) for s in found.copies] == [("host to device", 70.0), ("device to host", 20.0)]
    assert [(s.name, s.calls, s.total_us, s.mean_us) for s in found.api] == [
        ("hipMemcpyWithStream", 1, 700.0, 700.0),
        ("hipMalloc", 1, 200.0, 200.0),
        ("hipLaunchKernel", 2, 100.0, 50.0),
    ]


def test_statistics_stand_in_for_a_trace(tmp_path: Path) -> None:
    write_csv(tmp_path / "a" / "cell_kernel_trace.csv", KERNELS_7)
    write_csv(tmp_path / "b" / "cell_kernel_stats.csv", KERNEL_STATS)
    assert profiler.read(tmp_path / "a").kernels == profiler.read(tmp_path / "b").kernels


def test_counters_are_means_over_dispatches_of_all_passes(tmp_path: Path) -> None:
    write_rocprof(tmp_path)
    write_counters(tmp_path / "MEM" / "second" / "cell_counter_collection.csv", MemUnitBusy=65.0)
    memory = {"FETCH_SIZE": 10240.0, "WRITE_SIZE": 10240.0, "MemUnitBusy": 60.0, "MemUnitStalled": 3.0}
    rest = {"VALUBusy": 21.0, "OccupancyPercent": 80.0, "duration_us": 4.0}
    assert profiler.read(tmp_path).counters == {"fwd_register": memory | rest}


def test_a_column_that_is_missing_is_named(tmp_path: Path) -> None:
    write_csv(tmp_path / "cell_kernel_trace.csv", KERNELS_6.replace("Start_Timestamp", "Begin"))
    with pytest.raises(StoreError, match=r"cell_kernel_trace\.csv: no column 'Start_Timestamp' among .*Begin"):
        profiler.read(tmp_path)


@pytest.mark.parametrize("last", ["", ',"1200x"', '"fwd'])
def test_a_damaged_file_is_an_error_with_the_folder(tmp_path: Path, last: str) -> None:
    write_rocprof(tmp_path)
    trace = tmp_path / "times" / "cell_memory_copy_trace.csv"
    trace.write_text(trace.read_text().rpartition(",")[0] + last)
    with pytest.raises(StoreError, match=re.escape(str(tmp_path))):
        profiler.read(tmp_path)


def test_a_folder_without_a_profile(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no output of rocprofv3, ncu or torch"):
        profiler.read(tmp_path)


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("fwd_naive", "fwd_naive"),
        ("fwd_naive.kd", "fwd_naive"),
        ("fwd_naive(Params)", "fwd_naive"),
        ("void (anonymous namespace)::copy<unsigned long, 8>(T1 *, const T2 *)", "copy"),
        ("void at::elementwise_kernel<128, 4, void f<at::X>(int)::{lambda(int)#1}>(int, char)", "elementwise_kernel"),
    ],
)
def test_kernels_by_their_short_names(name: str, short: str) -> None:
    assert readers.short_name(name) == short


METRICS = ["gpu__time_duration.sum", "dram__bytes_read.sum", readers.NVIDIA_MEMORY, readers.NVIDIA_COMPUTE]


def ncu_table(units: list[str], *launches: list[str]) -> str:
    """A raw page: the heading, the line of units, a line for each launch; what ncu says stands around it."""
    fixed = ["ID", "Process ID", "Process Name", "Host Name", "Kernel Name", "Context", "Stream", "Device", "CC"]
    lines = [[*fixed, *METRICS], [*[""] * len(fixed), *units]]
    for i, values in enumerate(launches):
        lines.append([str(i), "9", "python3", "127.0.0.1", "fwd_register(Params)", "1", "7", "0", "9.0", *values])
    table = [",".join(f'"{w}"' for w in line) for line in lines]
    return "\n".join(["==PROF== Connected to process 9", *table, "==PROF== Disconnected from process 9"]) + "\n"


def test_ncus_raw_page_is_read() -> None:
    base = ncu_table(
        ["ns", "byte", "%", "%"], ["50,000", "100,000,000", "90.5", "20.1"], ["70000", "3e8", "91.5", "19.9"]
    )
    found = readers.read_ncu(base)["fwd_register"]
    assert found == pytest.approx(dict(zip(METRICS, (60.0, 2e8, 91.0, 20.0), strict=True)))
    scaled = ncu_table(["usecond", "Mbyte", "%", "%"], ["60.00", "200.0", "91.0", "20.0"])
    assert readers.read_ncu(scaled)["fwd_register"] == pytest.approx(found)


def test_ncu_without_a_table_says_why() -> None:
    with pytest.raises(StoreError, match="ncu gave no table: The application returned an error"):
        readers.read_ncu("==PROF== Connected\n==ERROR== The application returned an error code (1).\n")


def test_times_are_kept_when_ncu_may_not_count(tmp_path: Path) -> None:
    write_rocprof(tmp_path)
    (tmp_path / "ncu.csv").write_text("==ERROR== ERR_NVGPUCTRPERM - The user does not have permission\n")
    found = profiler.read(tmp_path)
    assert len(found.kernels) == 2
    assert len(found.missing) == 1
    assert "NVreg_RestrictProfilingToAdminUsers" in found.missing[0]


def test_times_are_those_of_the_pass_that_does_not_count(tmp_path: Path) -> None:
    write_rocprof(tmp_path)
    write_csv(tmp_path / "MEM" / "cell_kernel_trace.csv", KERNELS_7)
    assert profiler.read(tmp_path).kernels[0].calls == 2


@pytest.mark.parametrize("absent", ["n/a", "-", "nan", "", "."])
def test_a_metric_that_ncu_does_not_have_leaves_the_others(absent: str, tmp_path: Path) -> None:
    (tmp_path / "ncu.csv").write_text(ncu_table(["ns", "byte", "%", ""], ["50000", "1000", "90", absent]))
    found = profiler.read(tmp_path)
    assert found.counters["fwd_register"]["dram__bytes_read.sum"] == 1000.0
    assert readers.NVIDIA_COMPUTE not in found.counters["fwd_register"]
    assert profiler.bottlenecks(found) == []


def test_torchs_trace_is_read(tmp_path: Path) -> None:
    def event(cat: str, name: str, dur: float) -> dict[str, Any]:
        return {"ph": "X", "cat": cat, "name": name, "ts": 1.0, "dur": dur, "pid": 0, "tid": 7}

    events = [
        event("kernel", "fwd_register(Params)", 30.0),
        event("kernel", "fwd_register(Params)", 34.0),
        event("gpu_memcpy", "Memcpy HtoD (Pageable -> Device)", 500.0),
        event("gpu_memcpy", "Memcpy DtoH (Device -> Pageable)", 250.0),
        event("gpu_memset", "Memset (Device)", 1.0),
        event("cuda_runtime", "cudaLaunchKernel", 6.0),
        event("cuda_runtime", "cudaMemcpyAsync", 900.0),
        event("cpu_op", "aten::to", 5000.0),
        {"ph": "M", "name": "process_name", "pid": 0, "args": {"name": "python"}},
    ]
    (tmp_path / "trace.json").write_text(json.dumps({"traceEvents": events}))
    found = profiler.read(tmp_path)
    assert found.kernels == (profiler.Span("fwd_register", 2, 64.0),)
    assert [s.name for s in found.copies] == ["host to device", "device to host", "memset"]
    assert [(s.name, s.total_us) for s in found.api] == [("cudaMemcpyAsync", 900.0), ("cudaLaunchKernel", 6.0)]
    (tmp_path / "trace.json").write_text(json.dumps({"traceEvents": readers.trace_times(tmp_path / "trace.json")}))
    assert profiler.read(tmp_path) == found, "what the target keeps of a trace is what is read"
    (tmp_path / "trace.json").write_text("[]")
    with pytest.raises(StoreError, match="not a trace"):
        profiler.read(tmp_path)


# --- verdicts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("memory", "compute", "verdict"),
    [(91, 20, "memory"), (70, 85, "compute"), (30, 12, "latency"), (59.9, 59.9, "latency"), (60, 10, "memory")],
)
def test_verdict_from_the_higher_share(memory: float, compute: float, verdict: str) -> None:
    nvidia = {"k": {readers.NVIDIA_MEMORY: memory, readers.NVIDIA_COMPUTE: compute}}
    amd = {"k": {"MemUnitBusy": memory, "VALUBusy": compute}}
    for counters in (nvidia, amd):
        (found,) = profiler.bottlenecks(profiler.Profile(counters=counters))
        assert (found.verdict, found.memory_pct, found.compute_pct) == (verdict, memory, compute)


def test_amds_memory_share_is_of_the_stated_bandwidth_where_that_is_known(tmp_path: Path) -> None:
    write_rocprof(tmp_path)
    found = profiler.read(tmp_path)
    (stated,) = profiler.bottlenecks(found, peak_gbps=5325.0)
    assert stated.memory_pct == pytest.approx(100 * 20 * 2**20 / 4e-6 / 5325e9)
    assert (stated.verdict, stated.compute_is) == ("memory", "VALUBusy")
    (busy,) = profiler.bottlenecks(found)
    assert (busy.verdict, busy.memory_is, busy.memory_pct) == ("latency", "MemUnitBusy", 55.0)


# --- the commands ----------------------------------------------------------------------------------------------------


def test_rocprofv3_traces_first_and_then_counts_group_by_group(tmp_path: Path) -> None:
    times, *counting = run.passes(CELL, "/opt/rocm/bin/rocprofv3", tmp_path)
    target = [sys.executable, "-m", "cc1d_lab.profiler.target", run.to_json(CELL)]
    assert times.needed
    assert times.command == [
        *("/opt/rocm/bin/rocprofv3", "--output-format", "csv", "-d", str(tmp_path / "times"), "-o", "cell"),
        *("--kernel-trace", "--memory-copy-trace", "--hip-trace", "--stats", "--", *target),
    ]
    assert [p.command[p.command.index("--pmc") + 1 : p.command.index("--")] for p in counting] == [
        list(group) for group in readers.AMD_COUNTERS
    ]
    assert all(p.command[-4:] == target and not p.needed for p in counting)
    assert r"^(fwd_register|framed|scattered|mark)\b" in counting[0].command


def test_torch_watches_the_times_on_nvidia_and_ncu_counts(tmp_path: Path) -> None:
    times, counting = run.passes(Cell("fwd_register", "nvidia", CELL.case), "ncu", tmp_path)
    assert times.command[1:3] == ["-m", "cc1d_lab.profiler.target"]
    assert times.command[-1] == str(tmp_path / "trace.json")
    assert counting.command[:4] == ["ncu", "--csv", "--page", "raw"]
    assert r"regex:^(fwd_register|framed|scattered|mark)\b" in counting.command
    assert readers.NVIDIA_MEMORY in counting.command[counting.command.index("--metrics") + 1]


@pytest.mark.parametrize("variant", [v for v in variants.VARIANTS.values() if v.source], ids=lambda v: v.name)
def test_every_kernel_of_a_variant_is_counted(variant: variants.Variant) -> None:
    pattern = run.kernel_pattern(Cell(variant.name, "amd", Case()))
    source = (paths.kernels_dir() / variant.source).read_text()
    launched = set(re.findall(r"launch\w*<(\w+)[,>]", source)) - {"Kernel"}
    assert launched
    assert all(re.match(pattern, name) for name in launched)
    assert not re.match(pattern, "vectorized_elementwise_kernel")


def test_a_cell_comes_through_the_command_line_unchanged() -> None:
    cell = Cell("bwd_two_stage", "amd", Case(op="bwd", label="a 'label' with $x"), {"block": 128}, "gfx942")
    assert target.from_json(run.to_json(cell)) == cell


@pytest.mark.parametrize(
    ("name", "case"),
    [
        ("fwd_naive", Case(batch=2, dim=5, seqlen=9, view="channel_slice", states=True)),
        ("bwd_two_stage", Case(batch=2, dim=5, seqlen=9, op="bwd")),
        ("update_naive", Case(batch=2, dim=5, seqlen=1, op="update")),
    ],
    ids=["fwd", "bwd", "update"],
)
def test_the_program_that_is_profiled_computes_what_the_cell_computes(
    monkeypatch: pytest.MonkeyPatch, name: str, case: Case
) -> None:
    monkeypatch.setattr(target, "LAUNCHES", 1)  # every launch moves the state of an update on
    found = reference.all_errors(
        case, target.run(Cell(name, "cpu", case)), oracle.truths(case, reference.make_inputs(case))
    )
    assert found["n_bad"] == 0
    assert found["bound_ratio"] > 0


# --- the verb --------------------------------------------------------------------------------------------------------


def cc1d(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


ROCPROF = """#!/bin/sh
echo "$@" >> {log}
case "$*" in {fails}) echo "Could not find counter"; echo "error: counter is not supported on gfx942"; exit 1;; esac
while [ "$1" != -d ]; do shift; done
mkdir -p "$2" && cp -r {files}/"$(basename "$2")"/. "$2"
"""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A ROCm machine with an MI300X and a rocprofv3 that writes down its arguments and leaves files. Its root."""
    bare_machine(monkeypatch, tmp_path)
    made = make_rocm(tmp_path / "rocm", "gfx942")
    add_driver(tmp_path, 0, 90402)
    rocm_torch(monkeypatch, "gfx942")
    monkeypatch.setenv("ROCM_PATH", str(made.root))
    monkeypatch.setattr(build, "build_cell", lambda cell: None)
    write_rocprof(tmp_path / "files")
    groups = ["_".join(group) for group in readers.AMD_COUNTERS]
    for old, new in zip(("FETCH", "MEM", "VALU"), groups, strict=True):
        (tmp_path / "files" / old).rename(tmp_path / "files" / new)
    install_rocprof(tmp_path)
    return tmp_path


def install_rocprof(root: Path, fails: str = "nothing") -> None:
    tool = root / "rocm" / "bin" / "rocprofv3"
    tool.write_text(ROCPROF.format(log=root / "calls", files=root / "files", fails=fails))
    tool.chmod(0o755)


def test_profile_measures_prints_and_draws(machine: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = cc1d("profile", "--variant", "fwd_register", "--backend", "amd", "--out", str(out))
    assert done.exit_code == 0, done.output
    assert len((machine / "calls").read_text().splitlines()) == 4
    lines = [" ".join(line.split()) for line in done.output.splitlines()]
    assert "AMD Instinct MI300X (amd, gfx942)" in lines
    assert "fwd_register 2 8.00 88.9" in lines
    assert "hipMemcpyWithStream 1 700 70.0" in lines
    assert "fwd_register waits for memory: memory 98 % of peak, arithmetic 21 %" in lines
    for name in ("kernels", "api", "bottleneck"):
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    again = cc1d("profile", "--variant", "fwd_register", "--backend", "amd", "--read", str(out), "--json")
    read = json.loads(again.output)
    assert read["bottlenecks"] == json.loads((out / "profile.json").read_text())["bottlenecks"]
    assert read["stated_gbps"] > 5000


def test_counters_that_an_arch_does_not_have_are_told_and_the_times_are_kept(machine: Path, tmp_path: Path) -> None:
    install_rocprof(machine, fails="*MemUnit*|*VALU*|*FETCH*")
    done = cc1d("profile", "--variant", "fwd_register", "--backend", "amd", "--out", str(tmp_path / "out"))
    assert done.exit_code == 3
    assert "fwd_register" in done.output
    assert "missing: FETCH_SIZE_WRITE_SIZE: error: counter is not supported on gfx942" in done.output


def test_a_profiler_that_fails_altogether_is_an_error_with_its_log(machine: Path, tmp_path: Path) -> None:
    install_rocprof(machine, fails="*")
    done = cc1d("profile", "--variant", "fwd_register", "--backend", "amd", "--out", str(tmp_path / "out"))
    assert done.exit_code == 3
    assert "counter is not supported" in done.output
    assert "times.log" in done.output


def test_a_folder_with_other_things_in_it_is_left_alone(machine: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    again = ("profile", "--variant", "fwd_register", "--backend", "amd", "--out", str(tmp_path / "out"))
    done = cc1d(*again)
    assert done.exit_code == 2
    assert "holds other things than a profile" in done.output
    (tmp_path / "out" / "thesis.tex").unlink()
    assert cc1d(*again).exit_code == 0
    assert cc1d(*again).exit_code == 0, "an earlier profile is replaced"
    (tmp_path / "out" / "thesis.tex").touch()
    done = cc1d(*again)
    assert done.exit_code == 2
    assert "holds other things than a profile (thesis.tex)" in done.output
    assert (tmp_path / "out" / "thesis.tex").exists()


@pytest.mark.parametrize(
    ("backend", "tool", "remedy"), [("amd", "rocprofv3", "rocprofiler-sdk"), ("nvidia", "ncu", "Nsight Compute")]
)
def test_a_missing_profiler_has_its_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, backend: str, tool: str, remedy: str
) -> None:
    for name in ("ROCM_PATH", "HIP_PATH", "CUDA_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("PATH", "/bin")
    done = cc1d("profile", "--variant", "fwd_register", "--backend", backend)
    assert done.exit_code == 3
    assert f"no {tool}: tried {tmp_path}/bin/{tool}" in done.output
    assert remedy in done.output


def test_counters_that_are_kept_for_root_are_told_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tool = tmp_path / "ncu"
    tool.write_text('#!/bin/sh\necho "==ERROR== ERR_NVGPUCTRPERM - no permission"\nexit 1\n')
    tool.chmod(0o755)
    assert "NVreg_RestrictProfilingToAdminUsers" in run._run(run.Pass("counters", [str(tool)]), tmp_path)
    with pytest.raises(ToolchainError, match=r"ncu: the driver keeps .*; log: .*counters\.log"):
        run._run(run.Pass("counters", [str(tool)], needed=True), tmp_path)


def is_running(stat: Path) -> bool:
    """Of a process's /proc/PID/stat; one that has ended and is waited for by nobody yet is not."""
    try:
        return stat.read_text().split()[2] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_pass_that_takes_too_long_ends_with_all_that_it_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(run, "PASS_LIMIT_S", 0.5)
    tool = ["sh", "-c", f"sleep 60 & echo $! > {tmp_path}/pid; wait"]  # as a profiler runs the program in a child
    assert "timed out after 0.5 seconds" in run._run(run.Pass("counters", tool), tmp_path)
    child = Path("/proc", (tmp_path / "pid").read_text().strip(), "stat")
    deadline = time.monotonic() + 10  # what is killed goes when it is scheduled next
    while is_running(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_running(child)


def test_what_a_failed_pass_has_half_written_is_not_read(tmp_path: Path) -> None:
    half = tmp_path / "VALU" / "cell_counter_collection.csv"
    half.parent.mkdir()
    half.touch()
    assert run._run(run.Pass("VALU", ["false"]), tmp_path) == "VALU: it ended without a word"
    assert not half.exists()


@pytest.mark.parametrize("option", ["--out", "--read"])
def test_a_file_is_no_folder_of_a_profile(option: str, machine: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = cc1d("profile", "--variant", "fwd_register", "--backend", "amd", option, str(tmp_path / "file"))
    assert done.exit_code == 2
    assert "is a file" in done.output


def test_the_emulation_has_nothing_to_profile() -> None:
    done = cc1d("profile", "--backend", "cpu", "--variant", "fwd_naive")
    assert done.exit_code == 2
    assert "nothing to profile" in done.output
    assert "--backend amd or nvidia" in done.output


def test_a_tunable_that_the_variant_does_not_have_is_refused() -> None:
    done = cc1d("profile", "--backend", "nvidia", "--variant", "fwd_naive", "--set", "vectors=2")
    assert done.exit_code == 2
    assert "tunable: 'vectors' is not known" in done.output


@pytest.mark.parametrize("variant", ["torch_conv1d", "all"])
def test_one_kernel_is_profiled(variant: str) -> None:
    done = cc1d("profile", "--backend", "nvidia", "--variant", variant)
    assert done.exit_code == 2
    with pytest.raises(ConfigError, match="profile is for our kernels"):
        profiler.find(Cell("torch_conv1d", "amd", Case()))


# --- pictures --------------------------------------------------------------------------------------------------------

WHERE = {"backend": "amd", "arch": "gfx942", "device": "AMD Instinct MI300X"}


def words(figure: Any) -> str:
    """Every text of a figure."""
    import matplotlib.text

    return "\n".join(t.get_text() for t in figure.findobj(matplotlib.text.Text))


def test_pictures_show_the_shares(tmp_path: Path) -> None:
    write_rocprof(tmp_path)
    found = profiler.read(tmp_path)
    times = pd.DataFrame(found.times()).assign(**WHERE)
    device = words(plots.profile.device_times(times))
    assert "70.7 %, 70.0 µs in 1 call" in device  # of 99 us: the copies count
    assert "8.1 %, 8.00 µs in 2 calls" in device
    api = words(plots.profile.api_times(times))
    assert "70.0 %, 700 µs in 1 call" in api
    assert "hipLaunchKernel" in api
    shortened = words(plots.profile.api_times(times, limit=1))
    assert "2 shorter ones left out, 30 % together" in shortened
    waits = pd.DataFrame([vars(b) for b in profiler.bottlenecks(found, 5325.0)]).assign(**WHERE)
    drawn = words(plots.profile.bottlenecks(waits, profiler.LIMIT))
    assert "fwd_register\nwaits for memory" in drawn
    assert "98 %" in drawn


def test_pictures_of_nothing_say_so() -> None:
    empty = pd.DataFrame([{"what": "kernel", "name": "k", "calls": 1, "total_us": 1.0} | WHERE])
    assert "nothing to draw" in words(plots.profile.api_times(empty))
    assert "no counters" in words(plots.profile.bottlenecks(pd.DataFrame([WHERE]), 60.0))


# --- on a GPU --------------------------------------------------------------------------------------------------------

ONE = Case(batch=4, dim=1024, seqlen=2048, dtype="bfloat16", activation="silu")


@pytest.mark.gpu
def test_times_on_this_gpu(tmp_path: Path) -> None:
    cell = Cell("fwd_register", backends.first_runnable(), ONE)
    if cell.backend != "nvidia":
        pytest.skip(f"backend {cell.backend}: times come from rocprofv3, see the next test")
    step = next(run.passes(cell, "no profiler is needed for this", tmp_path))
    assert run._run(step, tmp_path) == ""
    found = profiler.read(tmp_path)
    (kernel,) = [s for s in found.kernels if s.name == "fwd_register"]
    assert kernel.calls == target.LAUNCHES
    assert {"host to device", "device to host"} <= {s.name for s in found.copies}
    assert any("LaunchKernel" in s.name for s in found.api)


@pytest.mark.gpu
def test_profile_on_this_gpu(tmp_path: Path) -> None:
    cell = Cell("fwd_register", backends.first_runnable(), ONE)
    try:
        profiler.find(cell)
    except ToolchainError as e:
        pytest.skip(str(e))
    found = profiler.profile(cell, tmp_path / "profile")
    assert found.missing == ()
    (waits,) = profiler.bottlenecks(found, profiler.peak_gbps(cell.backend))
    assert waits.verdict in ("memory", "latency")


# --- a recorded profile ----------------------------------------------------------------------------------------------

RECORDED = DATA / "profile_h100"
RECORD = (
    "cc1d profile --backend nvidia --variant fwd_register --batch 8 --dim 5120 --seqlen 2048 --dtype bf16 --use-silu "
    "--out tests/data/profile_h100"
)


@pytest.mark.skipif(not RECORDED.exists(), reason=f"{RECORDED} is not recorded yet; on an H100: {RECORD}")
def test_a_recorded_profile_of_an_h100() -> None:
    found = profiler.read(RECORDED)
    record = json.loads((RECORDED / "profile.json").read_text())
    case = Case(**record["cell"]["case"])
    (kernel,) = [s for s in found.kernels if s.name == "fwd_register"]
    assert kernel.calls == target.LAUNCHES
    assert {"host to device", "device to host"} <= {s.name for s in found.copies}
    assert any(s.name.startswith("cudaLaunchKernel") for s in found.api)
    counters = found.counters["fwd_register"]
    moved = counters["dram__bytes_read.sum"] + counters["dram__bytes_write.sum"]
    assert moved == pytest.approx(case.bytes(), rel=0.1)
    assert counters["gpu__time_duration.sum"] == pytest.approx(kernel.mean_us, rel=0.5)
    (waits,) = profiler.bottlenecks(found)
    assert waits.verdict == "memory"
