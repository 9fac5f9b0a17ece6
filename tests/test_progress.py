"""Progress lines: how many, when, and what they say."""

import io
import mmap
import re
import time

import pytest

from emcore.progress import Progress, Working, duration, quantity, resident_bytes


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def run(stream, seconds_per_step, steps, total="steps", **settings):
    clock = Clock()
    with Progress(steps if total == "steps" else total, "copy", "voxels", stream, clock=clock, **settings) as progress:
        for _ in range(steps):
            clock.now += seconds_per_step
            progress.add(1)
    return stream.getvalue()


def test_a_terminal_gets_one_line_that_is_rewritten_at_most_once_a_second():
    text = run(Terminal(), 0.01, 1000)  # ten seconds
    assert text.count("\n") == 1
    assert text.endswith("\n")
    assert 9 <= text.count("\r") <= 11
    assert text.count("\r") == text.count("\x1b[K")


def test_a_log_file_gets_plain_lines_every_thirty_seconds_and_one_at_the_end():
    text = run(io.StringIO(), 1, 100)
    lines = text.splitlines()
    assert len(lines) == 4
    assert "\r" not in text
    assert "\x1b" not in text
    assert lines[0].startswith("copy: 30% 30 of 100 voxels, 1 voxels/s, 1m10s left, memory ")
    assert lines[-1].startswith("copy: 100% 100 of 100 voxels, 1 voxels/s, in 1m40s, memory ")


def test_a_log_file_never_gets_more_than_one_line_a_second_even_when_asked():
    assert len(run(io.StringIO(), 0.01, 200, every=0.0).splitlines()) in (2, 3)


def test_the_last_line_comes_for_work_of_no_steps_and_of_unknown_total():
    assert len(run(io.StringIO(), 1, 0).splitlines()) == 1
    line, = run(io.StringIO(), 0.5, 4, total=None).splitlines()
    assert line.startswith("copy: 4 voxels, 2 voxels/s, in 2.0s")


@pytest.mark.parametrize("seconds,lines", [(5, 0), (50, 2)])
def test_work_that_fails_says_where_it_stopped_if_it_has_said_anything(seconds, lines):
    stream, clock = io.StringIO(), Clock()

    def work():
        with Progress(10, "copy", "blocks", stream, clock=clock) as progress:
            clock.now += seconds
            progress.add(3)
            raise KeyError

    with pytest.raises(KeyError):
        work()
    written = stream.getvalue().splitlines()
    assert len(written) == lines
    assert not lines or written[-1].startswith("copy: 30% 3 of 10 blocks, 0.06 blocks/s, stopped after 50s")


def test_a_line_never_wraps_on_a_narrow_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    for part in run(Terminal(), 1, 5).split("\r")[1:]:
        assert len(part.replace("\x1b[K", "").rstrip("\n")) < 20


def test_a_full_log_disk_does_not_end_the_work():
    class Full(io.StringIO):
        def write(self, text):
            raise OSError(28, "No space left on device")

    run(Full(), 40, 3)


@pytest.mark.parametrize("value,text", [(0, "0"), (7, "7"), (0.25, "0.25"), (9.996, "10.0"), (950, "950"),
                                        (999.7, "1.00k"), (1000, "1.00k"), (12345, "12.3k"), (4.56e6, "4.56M"),
                                        (123456789, "123M"), (3e9, "3.00G"), (5e15, "5000T")])
def test_quantities_have_three_significant_digits(value, text):
    assert quantity(value) == text


@pytest.mark.parametrize("seconds,text", [(0, "0.0s"), (9.97, "10s"), (59.6, "1m00s"), (200, "3m20s"), (7500, "2h05m"),
                                          (3599.6, "1h00m")])
def test_durations_read_like_speech(seconds, text):
    assert duration(seconds) == text


def test_the_resident_memory_is_that_of_this_process():
    if not resident_bytes():
        pytest.skip("this system does not tell the resident memory")
    before = resident_bytes()
    block = mmap.mmap(-1, 1 << 26)  # fresh pages, whatever earlier tests left in the heap
    block.write(b"x" * len(block))
    assert resident_bytes() - before > len(block) // 2
    assert re.fullmatch(r"[\d.]+[MG]", quantity(resident_bytes()))


def test_what_was_done_before_does_not_count_for_the_rate_and_failures_are_told():
    clock, stream = Clock(), io.StringIO()
    with Progress(100, "blocks", stream=stream, clock=clock) as progress:
        progress.add(90, found=True)
        clock.now += 10
        progress.add(5)
        progress.fail()
        assert progress.line(clock.now).startswith("blocks: 95% 95 of 100, 0.50/s, 1 failed, 10s left")
    assert stream.getvalue().startswith("blocks: 95% 95 of 100, 0.50/s, 1 failed, in 10s")


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_work_that_counts_nothing_tells_its_step_and_its_time_once_it_is_long(stream):
    short, long = stream(), stream()
    with Working("decode", short):
        pass
    assert short.getvalue() == ""
    with Working("synth", long, after=0.01, every=0.01) as work:
        work.now("growing neurites")
        until = time.monotonic() + 20
        while not long.getvalue() and time.monotonic() < until:
            time.sleep(0.01)
    assert re.match(r"\r?synth, growing neurites: 0\.\ds so far, memory [\d.]+[MG]B", long.getvalue())
    assert long.getvalue().endswith("\r\x1b[K" if stream is Terminal else "\n")
