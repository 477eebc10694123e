"""Progress on a terminal: one line that is rewritten; elsewhere a plain line every few seconds."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self, TextIO

REDRAW_S = 0.1  # a terminal is rewritten at most this often
LINE_S = 5.0  # a file or a pipe gets a line at most this often


class Progress:
    """Counts steps towards `total` and says how far they are and how long the rest will take.

    The rest is estimated from the mean time of the steps so far. Nothing is written for a total of 0,
    and a stream that has gone away (a closed pipe) never stops the work that is being counted.
    """

    def __init__(
        self,
        total: int,
        label: str,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total, self._label = total, label
        self._stream = stream if stream is not None else sys.stderr
        self._clock, self._start = clock, clock()
        self._done, self._drawn, self._note = 0, -1, ""
        self._tty = bool(getattr(self._stream, "isatty", bool)())
        self._next = self._start if self._tty else self._start + LINE_S
        self._closed = total <= 0

    def step(self, n: int = 1, note: str = "") -> None:
        """`n` more are done; `note` says what the last of them was."""
        self._done += n
        self._note = note or self._note
        if not self._closed and self._clock() >= self._next:
            self._draw()

    def close(self) -> None:
        """Write the final state and leave the line. More calls do nothing."""
        if self._closed:
            return
        self._note = ""
        if self._tty or self._drawn < self._done:
            self._draw(end="\n")
        self._closed = True

    def line(self) -> str:
        """`label  42 %  21/50  0:10 left  note`, or the time taken when all is done."""
        spent = self._clock() - self._start
        percent = 100 * self._done // max(self._total, 1)
        parts = [self._label, f"{percent:3d} %", f"{self._done}/{self._total}"]
        if self._done >= self._total:
            parts.append(f"in {_minutes(spent)}")
        elif self._done:
            parts.append(f"{_minutes(spent / self._done * (self._total - self._done))} left")
        return "  ".join([*parts, self._note]).rstrip()

    def _draw(self, end: str = "") -> None:
        try:
            if self._tty:
                width = shutil.get_terminal_size().columns - 1
                self._stream.write(f"\r{self.line()[:width].ljust(width)}{end}")
            else:
                self._stream.write(self.line() + "\n")
            self._stream.flush()
        except (OSError, ValueError):
            self._closed = True
        self._drawn = self._done
        self._next = self._clock() + (REDRAW_S if self._tty else LINE_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def _minutes(seconds: float) -> str:
    """m:ss, or h:mm:ss from an hour on."""
    whole = round(seconds)
    minutes, seconds_left = divmod(whole, 60)
    hours, minutes_left = divmod(minutes, 60)
    return f"{hours}:{minutes_left:02d}:{seconds_left:02d}" if hours else f"{minutes}:{seconds_left:02d}"
