"""hip_kernels/README.md says what the registry and the head comments say; what is published is whole."""

from __future__ import annotations

import re

import pytest

from cc1d_lab import catalogue, paths
from cc1d_lab.variants import VARIANTS

SOURCES = [v for v in VARIANTS.values() if v.source]


def test_the_readme_of_the_kernels_is_up_to_date() -> None:
    assert (paths.kernels_dir() / "README.md").read_text() == catalogue.kernels_readme(), "python -m cc1d_lab.catalogue"


def test_the_ladder_of_the_readme_comes_from_the_published_rows() -> None:
    root = paths.PACKAGE.parent
    readme = (root / "README.md").read_text()
    rows = catalogue.published_rows(root)
    assert readme == catalogue.with_ladder(readme, rows), "python -m cc1d_lab.catalogue"
    assert "fwd_register" in catalogue.ladder(rows)


def test_pages_of_published_runs_link_to_what_is_there() -> None:
    published = paths.PACKAGE.parent / catalogue.PUBLISHED
    links = [
        (page, page.parent / link)
        for page in published.rglob("*.html")
        for link in re.findall(r'href="([^"#:]+)"', page.read_text())
    ]
    assert {page.parent for page, _ in links} >= set(published.iterdir())
    assert not [(page, target) for page, target in links if not target.exists()]


@pytest.mark.parametrize("variant", SOURCES, ids=lambda v: v.name)
def test_every_head_comment_has_an_idea_and_a_sketch(variant: object) -> None:
    lines = catalogue.head_comment(paths.kernels_dir() / f"{variant.name}.hip")
    assert lines[0].endswith((".", ":", ";")) or len(lines) > 1
    assert any(line.startswith("  ") and line.strip() for line in lines), "a sketch of how the data moves, indented"
