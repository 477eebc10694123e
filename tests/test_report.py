"""The report: offline, nothing in it alive, and a notebook that fails is seen whatever papermill says."""

from __future__ import annotations

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from rows import make_row, make_rows, make_run, spoil

from cc1d_lab.case import Case
from cc1d_lab.errors import NotebookError, StoreError
from cc1d_lab.files import write
from cc1d_lab.report import render
from cc1d_lab.report.execute import execute
from cc1d_lab.report.export import export

PAYLOADS = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg onload=alert(1)>",
    "</script><script>alert(1)</script>",
    "</style><script>alert(1)</script>",
    "</title><script>alert(1)</script>",
    '"><script>alert(1)</script>',
    "'><img src=x onerror=alert(1)>",
    '" onmouseover="alert(1)',
    "<iframe src=javascript:alert(1)></iframe>",
    "<a href='javascript:alert(1)'>x</a>",
    "[x](javascript:alert(1))",
    "<style>@import 'http://example.com/x.css'</style>",
    "<link rel=stylesheet href=http://example.com/x.css>",
    "<meta http-equiv=refresh content='0;url=http://example.com'>",
    "<base href=http://example.com>",
    "<form action=http://example.com><button>x</button></form>",
    "<object data=http://example.com/x></object>",
    "<embed src=http://example.com/x>",
    "<details open ontoggle=alert(1)>",
    "{{ 7 * 7 }}{% include 'style.css' %}",
    "<!--<script>alert(1)</script>-->",
    "\x1b[31m<script>alert(1)</script>\x1b[0m",
    "<math><mtext><script>alert(1)</script></mtext></math>",
]
ALLOWED = {
    *(
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "header",
        "nav",
        "h1",
        "h2",
        "h3",
        "h4",
        "p",
        "a",
        "div",
        "span",
    ),
    *("table", "caption", "thead", "tbody", "tr", "th", "td", "ul", "ol", "li", "figure", "img", "figcaption", "code"),
    *("pre", "details", "summary", "b", "i", "strong", "em", "sub", "sup", "br", "hr", "blockquote"),
}


class Live(HTMLParser):
    """Collects what could run or ask the network for something."""

    def __init__(self) -> None:
        super().__init__()
        self.faults: list[str] = []
        self.csp = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ALLOWED:
            self.faults.append(f"<{tag}>")
        for name, value in attrs:
            if name.startswith("on") or name in ("srcdoc", "action", "formaction", "srcset"):
                self.faults.append(f"<{tag} {name}>")
            if name == "src" and not (value or "").startswith("data:image/"):
                self.faults.append(f"<{tag} src={value}>")
            if name == "href" and (":" in (value or "").split("/")[0] or (value or "").startswith("//")):
                self.faults.append(f"<{tag} href={value}>")
        named = dict(attrs)
        if tag == "meta" and (named.get("http-equiv") or "").lower() == "content-security-policy":
            self.csp = named.get("content") or ""
        elif tag == "meta" and named.get("http-equiv"):
            self.faults.append(f"<meta {named['http-equiv']}>")


def live(path: Path) -> Live:
    parser = Live()
    parser.feed(path.read_text())
    return parser


def hostile_rows() -> list[dict[str, Any]]:
    rows = []
    for payload in PAYLOADS:
        row = make_row("fwd_naive", "nvidia", Case())
        rows.append(spoil(row, "wrong") | {"variant": payload, "label": payload, "reason": payload})
        rows.append(spoil(row, "crashed") | {"reason": payload, "log": payload, "caveat": payload})
        rows.append(row | {"view": payload, "tunables": {payload: payload}, "first_bad": payload})
    names = dict.fromkeys(("device", "arch", "dtype", "layout", "activation", "experiment"), "".join(PAYLOADS))
    return [*rows, row | names]


# --- a whole report ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = make_rows(("cpu", "nvidia"), seqlens=(128, 1024), dtypes=("float16",), layouts=("channel_first",))
    run = make_run(tmp_path_factory.mktemp("reports") / "made_up" / "r1", rows)
    return render.render_report(run)


def test_page_says_what_it_must(report: Path) -> None:
    text = report.read_text()
    for part in ("cells are ok", "CPU emulation", "made-up GPU", "made-up crashed", "[0, 3, 127]", "0123abc", "-O3"):
        assert part in text, part
    assert "torch_conv1d takes (times)" in text, "the ratio to each baseline"
    for name in render.NOTEBOOKS:
        assert f'href="notebooks/{name}.html"' in text
        assert (report.parent / "notebooks" / f"{name}.ipynb").is_file()


def test_every_page_is_offline_and_guarded(report: Path) -> None:
    for page in [report, *sorted(report.parent.glob("notebooks/*.html"))]:
        found = live(page)
        assert found.faults == [], page.name
        assert found.csp.startswith("default-src 'none'"), page.name
        assert "script" not in found.csp


def test_executed_notebooks_name_no_path_of_this_machine(report: Path) -> None:
    for path in report.parent.glob("notebooks/*.ipynb"):
        assert str(report.parents[1]) not in path.read_text(), path.name


def test_nothing_temporary_is_left(report: Path) -> None:
    left = [p.name for p in report.parent.rglob(".*")]
    assert left == []


def test_hostile_rows_stay_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = "".join(PAYLOADS)
    info = {
        "yaml": first,
        "experiment": first,
        "run_id": first,
        "environment": {first: {"value": first, "origin": first}},
    }
    run = make_run(tmp_path / "run", hostile_rows(), git={first: first}, **info)
    monkeypatch.setattr(render, "NOTEBOOKS", ("10_validate",))
    page = render.render_report(run)
    assert live(page).faults == []
    assert live(run / "notebooks" / "10_validate.html").faults == []
    assert "&lt;script&gt;" in page.read_text()
    assert "{{ 7 * 7 }}" in page.read_text()


def test_a_run_without_rows_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"rows\.jsonl"):
        render.render_report(tmp_path)


@pytest.mark.parametrize("text", [None, "", "[]", "{", '{"environment": 3, "git": null, "compilers": ["x"]}'])
def test_a_damaged_run_json_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None) -> None:
    run = make_run(tmp_path / "run", [make_row("fwd_naive", "nvidia", Case())])
    monkeypatch.setattr(render, "NOTEBOOKS", ())
    (run / "run.json").unlink()
    if text is not None:
        (run / "run.json").write_text(text)
    assert "1 of 1 cells are ok" in render.render_report(run).read_text()


# --- notebooks that fail ----------------------------------------------------------------------------------------------

MARKED = "from cc1d_lab import notebook\nnotebook.completed()"
FAILURES = {
    "exception": (["1 / 0", MARKED], "cell 2: ZeroDivisionError"),
    "sys.exit(0)": (["import sys; sys.exit(0)", MARKED], "cell 3: was not executed"),
    "os._exit(0)": (["import os; os._exit(0)", MARKED], "cell 2: the kernel died"),
    "killed": (["import os, signal; os.kill(os.getpid(), signal.SIGKILL)", MARKED], "cell 2: the kernel died"),
    "timeout": (["import time; time.sleep(60)", MARKED], "cell 2: took longer than 2 s"),
    "ignores interrupts": (
        ["import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\ntime.sleep(60)", MARKED],
        "took longer than 2 s",
    ),
    "no mark": (["1 + 1"], "no completion mark"),
    "mark not last": ([MARKED, "1 + 1"], "no completion mark"),
    "forged mark": (
        ["from IPython.display import display\n"
         "display({'application/vnd.cc1d.completed+json': {'completed': True, 'nonce': 'x'}}, raw=True)"],
        "no completion mark",
    ),
    "empty": ([], "no completion mark"),
}  # fmt: skip


def planted(path: Path, sources: list[str], **metadata: Any) -> Path:
    parameters = new_code_cell("run = None", metadata={"tags": ["parameters"]})
    code = [new_code_cell(source, metadata=metadata) for source in sources]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=[parameters, *code], metadata={"kernelspec": KERNEL}), path)
    return path


KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}


@pytest.mark.parametrize(("sources", "message"), FAILURES.values(), ids=FAILURES)
def test_a_failure_is_seen_and_leaves_a_readable_notebook(tmp_path: Path, sources: list[str], message: str) -> None:
    source, target = planted(tmp_path / "bad.ipynb", sources), tmp_path / "out" / "bad.ipynb"
    start = time.monotonic()
    with pytest.raises(NotebookError, match=r"bad\.ipynb: ") as caught:
        execute(
            source, target, {"run": ".."}, timeout_s=2 if "2 s" in message else 60
        )  # 2 s is short on a busy machine
    assert message in str(caught.value)
    assert time.monotonic() - start < 30
    assert nbformat.read(target, as_version=4).metadata["cc1d"]["status"] == "failed"
    assert "did not run to its end" in export(target, target.with_suffix(".html")).read_text()


def test_an_unknown_parameter_is_refused_before_anything_runs(tmp_path: Path) -> None:
    source = planted(tmp_path / "bad.ipynb", [MARKED])
    with pytest.raises(NotebookError, match=r"parameter 'runn' is not known \(did you mean 'run'\?\)"):
        execute(source, tmp_path / "out" / "bad.ipynb", {"runn": "x"})


@pytest.mark.parametrize("tag", ["raises-exception", "skip-execution"])
def test_a_tag_that_hides_failures_is_refused(tmp_path: Path, tag: str) -> None:
    source = planted(tmp_path / "bad.ipynb", ["1 / 0", MARKED], tags=[tag])
    with pytest.raises(NotebookError, match=f"tag '{tag}' would hide a failure"):
        execute(source, tmp_path / "out" / "bad.ipynb", {})


def test_a_kernel_does_not_outlive_its_notebook(tmp_path: Path) -> None:
    stuck = (
        "import os, pathlib, signal, time\n"
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM])\n"
        "time.sleep(600)"
    )
    with pytest.raises(NotebookError):
        execute(planted(tmp_path / "bad.ipynb", [stuck]), tmp_path / "out" / "bad.ipynb", {}, timeout_s=2)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


@pytest.mark.parametrize(("finished", "cells", "told"), [(None, 9, True), ("2026-01-01", 9, False), (None, 1, False)])
def test_the_page_of_a_run_that_was_cut_short_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: str | None, cells: int, told: bool
) -> None:
    monkeypatch.setattr(render, "NOTEBOOKS", ())
    run = make_run(tmp_path / "run", [make_row("fwd_naive", "nvidia", Case())], finished=finished, cells=cells)
    assert ("cut short: 1 of its 9 cells are here" in render.render_report(run).read_text()) is told


def test_the_page_is_made_although_a_notebook_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planted(tmp_path / "notebooks" / "10_validate.ipynb", ["raise ValueError('<script>alert(1)</script>')"])
    monkeypatch.setattr(render, "notebooks_dir", lambda: tmp_path / "notebooks")
    monkeypatch.setattr(render, "NOTEBOOKS", ("10_validate", "missing"))
    missing = {"status": "unsupported", "reason": "not importable: pip install causal-conv1d", "time_us_p50": None}
    rows = [make_row("fwd_naive", "nvidia", Case()), make_row("dao_causal_conv1d", "nvidia", Case(), **missing)]
    run = make_run(tmp_path / "run", rows)
    with pytest.raises(
        NotebookError, match=r"10_validate\.ipynb: cell 2: ValueError.*missing\.ipynb.*the page was made"
    ):
        render.render_report(run)
    text = (run / "index.html").read_text()
    assert "Notebook 10_validate did not run to its end." in text
    assert "Notebook missing did not run to its end." in text
    assert "not importable: pip install causal-conv1d" in text, "what was not compared with is told"
    assert live(run / "index.html").faults == []
    assert live(run / "notebooks" / "10_validate.html").faults == []


# --- export and files -------------------------------------------------------------------------------------------------


def _outputs(payload: str) -> list[Any]:
    kinds = ("text/html", "text/markdown", "text/plain", "text/latex", "image/svg+xml", "application/javascript")
    traceback = {"ename": payload, "evalue": payload, "traceback": [payload]}
    return [
        *(new_output("display_data", data={kind: payload}) for kind in kinds),
        new_output("stream", name="stdout", text=payload),
        new_output("stream", name="stderr", text=payload),
        new_output(
            "display_data", data={"image/png": payload}, metadata={"image/png": {"alt": payload, "width": payload}}
        ),
        new_output("error", **traceback),
    ]


def test_hostile_outputs_stay_text(tmp_path: Path) -> None:
    cells = [new_markdown_cell(payload) for payload in PAYLOADS]
    cells += [new_code_cell(payload, outputs=_outputs(payload), execution_count=1) for payload in PAYLOADS]
    metadata = {"title": "".join(PAYLOADS), "cc1d": {"error": "".join(PAYLOADS)}}
    nbformat.write(new_notebook(cells=cells, metadata=metadata), tmp_path / "bad.ipynb")
    assert live(export(tmp_path / "bad.ipynb", tmp_path / "bad.html")).faults == []


def test_pages_are_made_side_by_side(tmp_path: Path) -> None:
    """A cleaner has one parser: two threads that share it take from each other's stacks."""
    cells = [new_code_cell(f"table[{i}]  # <b>{i}</b>") for i in range(30)]
    nbformat.write(new_notebook(cells=cells), tmp_path / "many.ipynb")
    alone = export(tmp_path / "many.ipynb", tmp_path / "alone.html").read_text()
    with ThreadPoolExecutor(4) as pool:
        pages = list(pool.map(lambda i: export(tmp_path / "many.ipynb", tmp_path / f"{i}.html"), range(8)))
    assert {page.read_text() for page in pages} == {alone}


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "page.html", "old")

    def refuse(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(StoreError, match=r"page\.html: cannot be written: No space left"):
        write(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]


def test_mark_is_json(report: Path) -> None:
    document = json.loads((report.parent / "notebooks" / "10_validate.ipynb").read_text())
    assert document["metadata"]["cc1d"] == {"status": "completed", "error": ""}
