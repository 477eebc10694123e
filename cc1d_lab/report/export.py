"""An executed notebook as one HTML page: no script, no request, nothing in its outputs that could become either."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..files import write
from ..paths import PACKAGE

TEMPLATES = PACKAGE / "templates"
_TAGS = frozenset(
    {"a", "b", "blockquote", "br", "caption", "code", "dd", "div", "dl", "dt", "em", "h1", "h2", "h3", "h4", "hr", "i"}
    | {"li", "ol", "p", "pre", "span", "strong", "sub", "sup", "table", "tbody", "td", "th", "thead", "tr", "ul"}
)
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def export(notebook: Path, target: Path) -> Path:
    """Write `notebook` (.ipynb) as HTML to `target`. Raises StoreError when the disk refuses."""
    import nbformat

    content = nbformat.read(notebook, as_version=4)
    for cell in content.cells:
        _plain_errors(cell)
        _plain_sizes(cell)
    text, _ = _exporter().from_notebook_node(content)
    return write(target, text)


def _plain_errors(cell: Any) -> None:
    """Take terminal colours out of text: they would become inline styles."""
    for output in cell.get("outputs", []):
        if output.output_type == "error":
            output.traceback = [_ANSI.sub("", line) for line in output.traceback]
        elif output.output_type == "stream":
            output.text = _ANSI.sub("", output.text)


def _plain_sizes(cell: Any) -> None:
    """Keep only numbers as sizes of pictures: the base template writes them into a tag without quotes."""
    for output in cell.get("outputs", []):
        for looks in output.get("metadata", {}).values():
            for name in ("width", "height"):
                if isinstance(looks, dict) and not isinstance(looks.get(name), int):
                    looks.pop(name, None)


def _exporter() -> Any:
    # A new one for each page: exporters are not made for several threads.
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(
        template_name="notebook",
        extra_template_basedirs=[str(TEMPLATES)],
        extra_template_paths=[str(TEMPLATES)],  # for style.css
        sanitize_html=True,
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        exclude_anchor_links=True,
        preprocessors=[],
    )
    exporter.register_filter("clean_html", _clean_html())
    return exporter


def _clean_html() -> Callable[[bytes | str], str]:
    """Makes HTML with tags of text and tables only, no style, and links to this folder alone; the rest becomes text.

    Of one thread: a cleaner has one parser.
    """
    from bleach.sanitizer import Cleaner  # type: ignore[import-untyped]

    cleaner = Cleaner(tags=_TAGS, attributes={"*": ["class"], "a": ["href"]}, protocols=frozenset())
    return lambda value: str(cleaner.clean(value.decode() if isinstance(value, bytes) else str(value)))
