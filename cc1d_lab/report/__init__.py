"""The report of a run: notebooks executed and exported, and one page, `index.html`, that stands alone.

`render_report(run_dir)` needs the run directory only: no device, no compiler, no network.
"""

from .render import render_report

__all__ = ["render_report"]
