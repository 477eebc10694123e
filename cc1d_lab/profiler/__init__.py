"""Run a cell under the vendor's profiler, and read what it wrote: time by kernel and by API call, and the bottleneck.

`readers` turns files into a Profile and needs no GPU; `run` calls rocprofv3 (amd) or ncu (nvidia) around `target`.
"""

from .readers import LIMIT, Bottleneck, Profile, Span, bottlenecks, read
from .run import PICTURES, check_backend, find, peak_gbps, profile, tool_of

__all__ = [
    "LIMIT",
    "PICTURES",
    "Bottleneck",
    "Profile",
    "Span",
    "bottlenecks",
    "check_backend",
    "find",
    "peak_gbps",
    "profile",
    "read",
    "tool_of",
]
