"""Rows -> charts. A chart takes a DataFrame of rows and returns a matplotlib Figure; no file is read or written.

Every figure names its device and its units, says in a note what it leaves out, and carries a banner when rows were made
in CPU emulation. A row that is not `ok` is never part of a line: it is drawn as a cross, or counted in the note.
A variant has one colour, one marker and one dash pattern everywhere, so that charts also read in greyscale.
"""

from ..tables import speedup_table
from . import profile
from .error import error, error_vs_throughput
from .pipeline import pipeline
from .scaling import cliffs, residuals, scaling
from .sheet import Style, number, single, style, to_png, to_svg
from .stages import stages
from .status import STATUS_LOOK, status_matrix
from .throughput import share_of_copy, throughput

__all__ = [
    "STATUS_LOOK",
    "Style",
    "cliffs",
    "error",
    "error_vs_throughput",
    "number",
    "pipeline",
    "profile",
    "residuals",
    "scaling",
    "share_of_copy",
    "single",
    "speedup_table",
    "stages",
    "status_matrix",
    "style",
    "throughput",
    "to_png",
    "to_svg",
]
