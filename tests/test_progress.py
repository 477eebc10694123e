"""Progress says how far the work is, on a terminal and in a log, and never stops it."""

from __future__ import annotations

import io

from cc1d_lab.progress import LINE_S, Progress


class _Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_gets_a_line_every_few_seconds_and_a_last_one() -> None:
    clock, stream = _Clock(), io.StringIO()
    progress = Progress(100, "cells", stream, clock)
    for _ in range(100):
        clock.now += 0.1
        progress.step()
    progress.close()
    lines = stream.getvalue().splitlines()
    assert 2 <= len(lines) <= 2 + 10 / LINE_S
    assert lines[-1] == "cells  100 %  100/100  in 0:10"


def test_a_log_does_not_say_the_end_twice() -> None:
    clock, stream = _Clock(), io.StringIO()
    with Progress(1, "cells", stream, clock) as progress:
        clock.now += 2 * LINE_S
        progress.step()
    assert stream.getvalue().count("100 %") == 1


def test_the_rest_is_estimated_from_the_steps_so_far() -> None:
    clock = _Clock()
    progress = Progress(4, "build", io.StringIO(), clock)
    clock.now = 30.0
    progress.step(1, note="fwd_naive")
    assert progress.line() == "build   25 %  1/4  1:30 left  fwd_naive"


def test_a_terminal_has_one_line_that_is_rewritten() -> None:
    clock, stream = _Clock(), _Terminal()
    with Progress(2, "cells", stream, clock) as progress:
        for _ in range(2):
            clock.now += 1.0
            progress.step()
    assert stream.getvalue().count("\n") == 1
    assert stream.getvalue().count("\r") == 3


def test_an_interrupted_run_says_where_it_stopped() -> None:
    stream = io.StringIO()
    progress = Progress(10, "cells", stream, _Clock())
    progress.step(3)
    progress.close()
    progress.close()
    assert stream.getvalue() == "cells   30 %  3/10  0:00 left\n"


def test_nothing_to_do_writes_nothing() -> None:
    stream = io.StringIO()
    Progress(0, "cells", stream).close()
    assert stream.getvalue() == ""


def test_a_closed_stream_does_not_stop_the_work() -> None:
    clock, stream = _Clock(), _Terminal()
    progress = Progress(5, "cells", stream, clock)
    stream.close()
    for _ in range(5):
        clock.now += 1
        progress.step()
    progress.close()
