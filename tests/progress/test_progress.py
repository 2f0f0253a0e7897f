"""The faces on events, seen as their readers see them: as text on a screen, in a log, in a pipe."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
from datetime import UTC, datetime

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from asyncpush.events import (
    ImageDone,
    ImageFailed,
    ImagePlanned,
    ImageStarted,
    ImageVerified,
    LayerDone,
    LayerFailed,
    LayerStarted,
    Limited,
    Notice,
    PartRead,
    PartSent,
    Retrying,
)
from asyncpush.model import Digest
from asyncpush.progress import progress
from asyncpush.progress.lines import JsonDisplay, PlainDisplay, Sink, shortened
from asyncpush.progress.meter import Meter
from asyncpush.progress.rich import RichDisplay
from asyncpush.units import percent_text, size_text, time_text

MiB = 1024 * 1024
GiB = 1024 * MiB
HOST = "123456789012.dkr.ecr.eu-west-1.amazonaws.com"
API, WEB, OPS = (f"{HOST}/{name}" for name in ("backend/api:1.0", "frontend/web:2.1", "ops/exporter:1.8"))
DIGEST = Digest("1db8eeb6a331" + "0" * 52)
LIMIT = Retrying("UploadLayerPart", 2, 1.5, "ThrottlingException: Rate exceeded")
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Screen:
    """A RichDisplay on a terminal of some size; ``paint`` gives what one drawing puts on it, without control codes."""

    def __init__(
        self, width: int, height: int, images: int | None = None, encoding: str = "utf-8", *, each: bool = False
    ) -> None:
        self.clock = Clock()
        self.file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="")
        self.console = Console(
            file=Sink(self.file), force_terminal=True, color_system=None, width=width, height=height, _environ={}
        )
        self.face = RichDisplay(Sink(self.file), images=images, each=each, clock=self.clock, console=self.console)
        self.raw()

    def raw(self) -> str:
        self.file.seek(0)
        text = self.file.read()
        self.file.seek(0)
        self.file.truncate()
        return text

    def paint(self) -> list[str]:
        self.face.tick()
        return [line.rstrip() for line in CONTROL.sub("", self.raw()).split("\n")]

    def close(self) -> list[str]:
        self.face.close()
        return [line.rstrip() for line in CONTROL.sub("", self.raw()).split("\n")]


def run_three_images(screen: Screen | None, take) -> None:
    """Three images, five seconds in: one was there already, two are on their way with three layers."""
    for destination in (API, WEB, OPS):
        take(ImageStarted("oci:somewhere", destination))
    take(ImagePlanned(OPS, 0, 0, 12, 90 * MiB))
    take(ImagePlanned(API, 2, 300 * MiB, 2, 10 * MiB, ("a", "b")))
    take(ImagePlanned(WEB, 1, 100 * MiB, 0, 0, ("c",), 3, 7 * MiB))
    take(LayerStarted("a", "9f86d081884c", 200 * MiB, "backend/api"))
    take(LayerStarted("b", "60303ae22b99", 100 * MiB, "backend/api"))
    take(LayerStarted("c", "fd61a03af4f7", 100 * MiB, "frontend/web"))
    take(PartSent("a", 50 * MiB, 50 * MiB))
    take(PartSent("b", 100 * MiB, 100 * MiB))
    if screen is not None:
        screen.clock.now += 5


GOLDEN = {
    20: [
        "api 9f8…81884c  25%",
        "api 603…e22b99 100%",
        "web fd6…3af4f7   0%",
        "150 MiB of 400 MiB",
        "37%, 0:08 left",
    ],
    40: [
        "api 9f8…081884c ━╸      25%  10.0 MiB/s",
        "api 603…ae22b99 ━━━━━━ 100%  completing",
        "web fd6…03af4f7          0%",
        "0/3 images, 150 MiB of 400 MiB, 37%",
        "30.0 MiB/s, 0:05 elapsed, 0:08 left",
    ],
    80: [
        "api 9f86d081884c ━━━━━━━                       50.0 MiB of  200 MiB  10.0 MiB/s",
        "api 60303ae22b99 ━━━━━━━━━━━━━━━━━━━━━━━━━━━━━  100 MiB of  100 MiB  completing",
        "web fd61a03af4f7                                    0 B of  100 MiB",
        "0/3 images, 150 MiB of 400 MiB, 37%, 30.0 MiB/s, 0:05 elapsed, 0:08 left",
        "14 layers already there, 3 shared",
    ],
    200: [
        f"api 9f86d081884c {'━' * 15:60} 50.0 MiB of  200 MiB  10.0 MiB/s",
        f"api 60303ae22b99 {'━' * 60:60}  100 MiB of  100 MiB  completing",
        f"web fd61a03af4f7 {'':60}      0 B of  100 MiB",
        "0/3 images, 150 MiB of 400 MiB, 37%, 30.0 MiB/s, 0:05 elapsed, 0:08 left, 14 layers already there, 3 shared",
    ],
}


@pytest.mark.parametrize("width", GOLDEN)
def test_bars_and_totals_use_the_width_that_there_is(width):
    screen = Screen(width, 24)
    run_three_images(screen, screen.face.take)
    assert screen.paint() == GOLDEN[width]


def test_a_terminal_without_unicode_gets_bars_of_ascii():
    screen = Screen(40, 24, encoding="ascii")
    run_three_images(screen, screen.face.take)
    assert screen.paint()[0] == "api 9f...81884c -       25%  10.0 MiB/s"


def test_layers_beyond_the_last_line_are_counted():
    screen = Screen(40, 8)
    for number in range(20):
        screen.face.take(LayerStarted(str(number), f"layer {number}", MiB, "api"))
    painted = screen.paint()
    assert [line.split("  ")[0] for line in painted[:4]] == [f"layer {number}" for number in range(4)]
    assert painted[4:] == ["+ 16 more layers", "0/20 layers, 0 B of 20.0 MiB, 0%", "0:00 elapsed"]


def test_layers_whose_bytes_move_are_shown_before_others():
    screen = Screen(40, 8)
    for number in range(20):
        screen.face.take(LayerStarted(str(number), f"layer {number}", MiB, "api"))
    for number in (3, 19):
        screen.face.take(PartSent(str(number), 1000, 1000))
    painted = [line.split("  ")[0].split(" ━")[0] for line in screen.paint()[:4]]
    assert painted == ["layer 0", "layer 1", "layer 3", "layer 19"]


def test_repositories_of_the_same_last_name_are_told_apart():
    screen = Screen(80, 24)

    def shown() -> list[str]:
        return [line.split("  ")[0] for line in screen.paint()[:-1]]

    screen.face.take(LayerStarted("a", "9f86d081884c", MiB, "mirror/eu/api"))
    assert shown() == ["9f86d081884c"]
    screen.face.take(LayerStarted("b", "9f86d081884c", MiB, "mirror/web"))
    assert shown() == ["api 9f86d081884c", "web 9f86d081884c"]
    screen.face.take(LayerStarted("c", "9f86d081884c", MiB, "mirror/us/api"))
    assert shown() == ["eu/api 9f86d081884c", "web 9f86d081884c", "us/api 9f86d081884c"]


def test_a_layer_for_many_repositories_is_in_flight_once():
    """One that is read once takes one of ``--max-layers``, however many repositories it is sent to."""
    events = [LayerStarted(f"{place}/{blob}", blob, MiB, place, blob) for place in "abcd" for blob in ("x", "y")]
    assert totals_after(*events).in_flight == 2
    ends = [LayerDone("a/x", DIGEST, "pushed"), LayerFailed("b/x"), LayerDone("c/x", DIGEST, "pushed")]
    assert totals_after(*events, *ends).in_flight == 2
    assert totals_after(*events, *ends, LayerDone("d/x", DIGEST, "pushed")).in_flight == 1


def test_images_that_end_are_counted_and_shown_if_each_is_asked_for():
    for each in (False, True):
        screen = Screen(80, 24, each=each)
        run_three_images(screen, screen.face.take)
        screen.paint()
        screen.face.take(LayerDone("c", DIGEST, "pushed"))
        screen.face.take(ImageDone(WEB, DIGEST, "pushed"))
        screen.face.take(ImageDone(OPS, DIGEST, "present"))
        painted = screen.paint()
        above = [
            "pushed         1db8eeb6a331  frontend/web:2.1",
            "already there  1db8eeb6a331  ops/exporter:1.8",
        ]
        assert painted[:2] == (above if each else [*GOLDEN[80][:2]])
        assert [line.split()[0] for line in painted[len(above) * each :]] == ["api", "api", "2/3", "14"]
        assert "pushed" not in "".join(screen.paint())


def test_the_first_failure_of_a_cause_is_shown_while_the_run_goes_on():
    screen = Screen(80, 24)
    run_three_images(screen, screen.face.take)
    screen.face.take(ImageFailed(API, f"{API}: the source ends early"))
    screen.face.take(ImageFailed(WEB, f"{WEB}: the source ends early"))
    assert screen.paint()[-1].startswith(f"failed {HOST}/backend/api:1.0: ")
    screen.face.take(ImageFailed(OPS, "denied"))
    assert screen.paint()[-1] == f"failed {HOST}/ops/exporter:1.8: denied"
    assert "failed " not in "".join(screen.close()).replace("3 failed", "")


def test_a_wide_screen_shows_the_registry_too():
    screen = Screen(200, 24, each=True)
    screen.face.take(ImageDone(WEB, DIGEST, "pushed"))
    assert screen.paint()[0] == f"pushed         1db8eeb6a331  {WEB}"


def test_a_retry_is_shown_for_as_long_as_it_matters():
    screen = Screen(100, 24)
    run_three_images(screen, screen.face.take)
    screen.face.take(LIMIT)
    assert screen.paint()[-1] == "retrying UploadLayerPart in 1.5 s (try 2): ThrottlingException: Rate exceeded"
    screen.clock.now += 10
    assert "retrying" not in "".join(screen.paint())


def test_the_last_state_stays_on_the_screen_with_the_mean_rate():
    """The last state stays on the screen, with the mean rate, and the cursor is visible again."""
    screen = Screen(80, 24)
    run_three_images(screen, screen.face.take)
    screen.paint()
    screen.face.close()
    last = screen.raw()
    assert "\x1b[?25h" in last
    assert last.endswith("\n\x1b[?25h")
    lines = [line.rstrip() for line in CONTROL.sub("", last).rstrip().split("\n")]
    assert lines[:3] == GOLDEN[80][:3]
    assert lines[-2:] == ["0/3 images, 150 MiB of 400 MiB, in 0:05, 30.0 MiB/s, 14 layers already there", "3 shared"]


def test_nothing_happened_leaves_nothing_behind():
    assert Screen(80, 24).close() == [""]


titles = st.text(max_size=60) | st.sampled_from(["層" * 40, "\x1b[2J\x1b[H", "a\nb\r\tc", "[red]x[/]", "\u202eabc"])


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 220), st.integers(1, 40), st.lists(titles, max_size=70), st.booleans(), st.booleans())
def test_no_painting_is_wider_or_higher_than_the_terminal(width, height, layer_titles, retrying, closed):
    screen = Screen(width, height, images=3)
    for number, title in enumerate(layer_titles):
        screen.face.take(LayerStarted(str(number), title, number * MiB, API))
        screen.face.take(PartSent(str(number), number * MiB // 2, 1))
    if retrying:
        screen.face.take(LIMIT)
    painted = screen.close()[:-1] if closed else screen.paint()
    assert len(painted) <= height
    assert all(cell_len(line) <= width for line in painted)
    assert "\x1b" not in "".join(painted)


def plain(images: int | None = None, *, each: bool = False) -> tuple[PlainDisplay, Clock, io.StringIO]:
    clock, file = Clock(), io.StringIO()
    return PlainDisplay(Sink(file), images=images, each=each, interval=5.0, clock=clock), clock, file


def test_a_log_has_a_line_for_each_notice_and_for_each_image_if_asked():
    for each in (False, True):
        face, _, file = plain(each=each)
        face.take(ImageStarted("oci:x", API))
        face.take(ImageDone(API, DIGEST, "pushed"))
        face.take(ImageDone(OPS, DIGEST, "present"))
        face.take(ImageFailed(WEB, "no such\x1b[31m repository;\ncreate it"))
        face.take(Notice("one foreign layer is left out"))
        images = [
            f"pushed         1db8eeb6a331  {API}",
            f"already there  1db8eeb6a331  {OPS}",
            f"failed                       {WEB}: no such [31m repository; create it",
        ]
        assert file.getvalue().splitlines() == [*images * each, "note           one foreign layer is left out"]


def test_a_heartbeat_tells_the_first_failure_of_each_cause():
    face, clock, file = plain()
    for place in (API, WEB):
        face.take(ImageFailed(place, f"{place}: denied"))
    for _ in range(2):
        clock.now += 5
        face.tick()
    failure, *beats = file.getvalue().splitlines()
    assert failure == f"failed                       {API}: {API}: denied"
    assert beats == ["  0/2 images, 2 failed, 0:05 elapsed", "  0/2 images, 2 failed, 0:10 elapsed"]


def test_the_heart_beats_only_after_five_seconds_of_silence():
    face, clock, file = plain(images=12)
    run_three_images(None, face.take)
    clock.now += 4.9
    face.take(PartSent("c", 10 * MiB, 10 * MiB))
    face.tick()
    assert file.getvalue() == ""
    clock.now += 0.1
    face.tick()
    face.tick()
    assert file.getvalue() == (
        "  0/12 images, 160 MiB of ~1.6 GiB, 10%, 32.0 MiB/s, 0:05 elapsed, ~0:45 left, "
        "14 layers already there, 3 shared, 3 layers in flight\n"
    )
    clock.now += 4
    face.take(ImageDone(OPS, DIGEST, "present"))
    clock.now += 4
    face.tick()
    assert len(file.getvalue().splitlines()) == 2, "an image that ends is no sound"


def test_a_heart_with_nothing_to_tell_is_silent():
    face, clock, file = plain()
    clock.now += 60
    face.tick()
    assert file.getvalue() == ""


def test_of_many_retries_a_log_shows_the_first_and_then_their_number():
    face, clock, file = plain()
    for _ in range(8):
        face.take(LIMIT)
    face.take(Retrying("PutImage", 2, 0.25, "timed out"))
    face.tick()
    assert file.getvalue().splitlines() == [
        "retrying       UploadLayerPart in 1.5 s (try 2): ThrottlingException: Rate exceeded",
        "retrying       PutImage in 0.2 s (try 2): timed out",
    ]
    clock.now += 5
    face.tick()
    face.tick()
    assert file.getvalue().splitlines()[2:] == [
        "retrying       UploadLayerPart in 1.5 s (try 2, 6 more): ThrottlingException: Rate exceeded"
    ]


EVERY_EVENT = [
    ImageStarted("oci:x", API),
    ImagePlanned(API, 2, 300, 1, 5),
    LayerStarted("a", "t\udc80\n", 300, API),
    PartSent("a", -3, 4),
    LayerDone("a", DIGEST, "pushed"),
    LayerFailed("b"),
    ImageDone(API, DIGEST, "present"),
    ImageFailed(WEB, "because"),
    LIMIT,
    Notice("hello"),
]


def test_every_event_is_one_json_object_with_its_fields():
    file = io.StringIO()
    face = JsonDisplay(Sink(file), now=lambda: datetime(2026, 11, 23, 7, 5, 9, 1999, tzinfo=UTC))
    for event in EVERY_EVENT:
        face.take(event)
    assert file.getvalue() == ""
    face.tick()
    face.tick()
    objects = [json.loads(line) for line in file.getvalue().splitlines()]
    assert " ".join(each["type"] for each in objects) == (
        "image-started image-planned layer-started part-sent layer-done layer-failed image-done image-failed"
        " retrying notice"
    )
    assert {each["time"] for each in objects} == {"2026-11-23T07:05:09.001Z"}
    assert objects[4] == {**objects[4], "layer": "a", "digest": str(DIGEST), "outcome": "pushed"}
    for event, found in zip(EVERY_EVENT, objects, strict=True):
        wanted = {name: getattr(event, name) for name in type(event).__slots__}
        assert found == {"type": found["type"], "time": found["time"], **wanted, **_texts(wanted), **_lists(wanted)}


def _lists(values):
    return {name: list(value) for name, value in values.items() if isinstance(value, tuple)}


def _texts(values):
    return {name: str(value) for name, value in values.items() if isinstance(value, Digest)}


class Listening(io.StringIO):
    def __init__(self):
        super().__init__()
        self.flushed = anyio.Event()

    def flush(self):
        super().flush()
        self.flushed.set()


async def test_json_lines_reach_the_stream_while_the_run_goes_on():
    file = Listening()
    async with progress("json", stream=file) as emit:
        emit(Notice("hello"))
        with anyio.fail_after(10):
            await file.flushed.wait()
        assert json.loads(file.getvalue())["text"] == "hello"


async def test_a_cancelled_run_has_all_its_lines_written():
    file = io.StringIO()
    with anyio.CancelScope() as scope:
        async with progress("json", stream=file) as emit:
            emit(Notice("hello"))
            scope.cancel()
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    notice, end = map(json.loads, file.getvalue().splitlines())
    assert notice["text"] == "hello"
    assert (end["type"], end["images"], end["read"]) == ("end", 0, 0)


@pytest.mark.parametrize("kind", ["rich", "plain", "json", "none"])
@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt, SystemExit])
async def test_an_exception_of_the_block_comes_out_as_it_is(kind, error):
    with pytest.raises(error):
        async with progress(kind, stream=io.StringIO()):
            raise error


class Broken(io.StringIO):
    def write(self, text):
        raise ZeroDivisionError


@pytest.mark.parametrize("kind", ["rich", "plain", "json"])
@pytest.mark.parametrize("broken", ["reader left", "closed", "fails"])
async def test_a_stream_that_goes_away_breaks_nothing(kind, broken, caplog):
    reader, writer = os.pipe()
    os.close(reader)
    stream = Broken() if broken == "fails" else os.fdopen(writer, "w")
    if broken != "reader left":
        stream.close() if broken == "closed" else os.close(writer)
    sent = 0
    async with progress(kind, stream=stream) as emit:
        for event in EVERY_EVENT * 2:
            emit(event)
            sent += 1
        await anyio.sleep(0.3)
        emit(Notice("still going"))
    assert sent == 2 * len(EVERY_EVENT)
    assert bool(caplog.records) is (broken == "fails"), "only a defect is worth a warning"
    if broken == "reader left":
        with pytest.raises(BrokenPipeError):
            stream.close()


def test_letters_that_a_stream_lacks_are_escaped():
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    PlainDisplay(Sink(file)).take(Notice("caf\u00e9"))
    file.seek(0)
    assert file.read() == "note           caf\\xe9\n"


async def test_silence_is_silent():
    file = io.StringIO()
    async with progress("none", stream=file) as emit:
        for event in EVERY_EVENT:
            emit(event)
    assert file.getvalue() == ""


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("stream", "environment", "bars"),
    [
        (Terminal(), {"TERM": "xterm"}, True),
        (Terminal(), {"TERM": "xterm", "CI": "false"}, True),
        (Terminal(), {"TERM": "xterm", "CI": "true"}, False),
        (Terminal(), {"TERM": "dumb"}, False),
        (io.StringIO(), {"TERM": "xterm"}, False),
    ],
)
async def test_auto_draws_bars_only_where_somebody_watches(stream, environment, bars, monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    async with progress("auto", stream=stream, each=True) as emit:
        emit(ImageDone(API, DIGEST, "pushed"))
    assert ("\x1b[?25l" in stream.getvalue()) is bars
    assert "1db8eeb6a331" in stream.getvalue()


async def test_colour_is_left_out_where_it_is_not_wanted(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("CI", raising=False)
    shown = {}
    for wish in ("", "1"):
        monkeypatch.setenv("NO_COLOR", wish)
        stream = Terminal()
        async with progress("rich", stream=stream, each=True) as emit:
            emit(ImageFailed(API, "because"))
        shown[wish] = "\x1b[31m" in stream.getvalue()
    assert shown == {"": True, "1": False}


def test_faces_without_bars_do_not_load_rich():
    program = (
        "import anyio, io, sys\n"
        "from asyncpush.progress import progress\n"
        "async def main(kind):\n"
        "    async with progress(kind, stream=io.StringIO()): pass\n"
        "for kind in ('plain', 'json', 'none', 'auto'): anyio.run(main, kind)\n"
        "sys.exit('rich' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


PROGRAM = f"""
import anyio, sys
from asyncpush.events import *
from asyncpush.progress import progress
async def main():
    async with progress("auto") as emit:
        emit(ImageStarted("oci:x", {API!r}))
        emit(LayerStarted("a", "a layer", 100, "api"))
        emit(PartSent("a", 50, 50))
        await anyio.sleep(0.3)
        print("a warning", file=sys.stderr)
        print("READY", flush=True)
        await anyio.sleep_forever()
anyio.run(main)
"""


def test_ctrl_c_restores_the_cursor_and_leaves_the_last_state():
    """Ctrl-C restores the cursor and leaves the last state in the terminal."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"}
    environment.pop("CI", None)
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=theirs,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        os.close(theirs)
        assert process.stdout.readline() == b"READY\n"
        process.send_signal(signal.SIGINT)
        seen = _read_terminal(ours)
    os.close(ours)
    before, hidden, after = seen.partition("\x1b[?25l")
    assert hidden
    assert not before.strip()
    bars, shown, rest = after.rpartition("\x1b[?25h")
    assert shown
    assert "\x1b[?25l" not in bars
    assert "KeyboardInterrupt" in rest
    lines = [line for line in CONTROL.sub("", bars.replace("\r", "\n")).split("\n") if line]
    assert "a warning" in lines
    assert lines[-2].startswith("a layer ━")
    assert lines[-1].startswith("0/1 layers, 50 B of 100 B, in 0:0")


def _read_terminal(descriptor: int) -> str:
    seen = b""
    while select.select([descriptor], [], [], 20)[0]:
        try:
            data = os.read(descriptor, 65536)
        except OSError:
            break
        if not data:
            break
        seen += data
    return seen.decode()


def totals_after(*events, images=None, seconds=0.0):
    clock = Clock()
    meter = Meter(clock, images)
    for event in events:
        meter.take(event)
    clock.now += seconds
    return meter.totals()


PLAN = (ImageStarted("oci:x", API), ImagePlanned(API, 2, 300, 1, 5))
TWO_LAYERS = (LayerStarted("a", "a", 200, API), LayerStarted("b", "b", 100, API))


def test_bytes_that_are_read_again_count_once():
    totals = totals_after(*PLAN, *TWO_LAYERS, PartSent("a", 150, 150), PartSent("a", -150, 0), PartSent("a", 80, 80))
    assert (totals.read, totals.size) == (80, 300)


def test_a_layer_that_turns_out_to_be_there_needs_no_more_bytes():
    totals = totals_after(*PLAN, *TWO_LAYERS, PartSent("a", 50, 50), LayerDone("a", DIGEST, "present"))
    assert (totals.read, totals.size, totals.present_layers, totals.in_flight) == (50, 150, 2, 1)


def test_what_a_failed_image_still_needed_is_no_longer_waited_for():
    totals = totals_after(*PLAN, *TWO_LAYERS, PartSent("a", 50, 50), LayerFailed("a"), LayerFailed("b"),
                          ImageFailed(API, "because"))  # fmt: skip
    assert (totals.read, totals.size, totals.images_failed, totals.in_flight) == (50, 50, 1, 0)


def test_an_image_that_is_tried_again_counts_once():
    again = (ImageStarted("oci:x", API), ImagePlanned(API, 1, 250, 2, 55), LayerStarted("a2", "a", 250, API))
    totals = totals_after(*PLAN, *TWO_LAYERS, PartSent("a", 50, 50), LayerFailed("a"), LayerFailed("b"),
                          ImageFailed(API, "because"), *again)  # fmt: skip
    assert (totals.read, totals.size, totals.images, totals.images_failed) == (50, 300, 1, 0)
    totals = totals_after(*PLAN, ImageFailed(API, "because"), *PLAN)
    assert (totals.read, totals.size, totals.layers) == (0, 300, 2)


def test_a_verification_counts_images_and_the_bytes_that_it_reads():
    read = (LayerStarted("a", "a", 200, API), PartRead("a", 150), LayerDone("a", DIGEST, "read"))
    totals = totals_after(ImageStarted(API, API), ImageStarted(WEB, WEB), ImagePlanned(API, 2, 300, 0, 0, ("a", "b")),
                          *read, ImageVerified(WEB, DIGEST, "whole"), seconds=5)  # fmt: skip
    assert (totals.read, totals.size, totals.present_layers) == (200, 300, 0)
    assert (totals.images, totals.images_done, totals.images_failed, totals.layers_done) == (2, 1, 0, 1)
    assert totals_after(ImageStarted(API, API), ImageVerified(API, None, "broken")).images_failed == 1


def test_layers_without_an_image_make_up_the_run():
    totals = totals_after(*TWO_LAYERS, PartSent("b", 100, 100), LayerDone("b", DIGEST, "pushed"))
    assert (totals.images, totals.layers, totals.layers_done, totals.read, totals.size) == (0, 2, 1, 100, 300)


def test_bytes_that_were_sent_by_an_earlier_run_are_no_speed():
    totals = totals_after(*TWO_LAYERS, PartSent("a", 150, 0), PartSent("b", 10, 10), seconds=5)
    assert (totals.read, totals.rate, totals.left) == (160, 2.0, 70.0)


def test_the_rate_is_recent_and_falls_to_zero_on_a_stall():
    """The rate is that of the last seconds, and falls to zero on a stall."""
    clock = Clock()
    meter = Meter(clock)
    meter.take(LayerStarted("a", "a", GiB, API))
    assert meter.totals().rate is None
    for speed in [1] * 20 + [5] * 20:
        clock.now += 1
        meter.take(PartSent("a", speed * MiB, speed * MiB))
    assert meter.totals().rate == pytest.approx(5 * MiB, rel=0.15)
    clock.now += 11
    assert (meter.totals().rate, meter.totals().left) == (0.0, None)


def waiting_for_put_image(clock: Clock, *, images: int) -> Meter:
    """A meter of *images* images of one byte, of which one ends in each of ten seconds."""
    meter = Meter(clock)
    for number in range(images):
        meter.take(ImageStarted("x", f"app:{number}"))
        meter.take(ImagePlanned(f"app:{number}", 1, 1, 0, 0, (str(number),)))
    for number in range(10):
        clock.now += 1
        meter.take(LayerStarted(str(number), "layer", 1, f"app:{number}"))
        meter.take(PartSent(str(number), 1, 1))
        meter.take(LayerDone(str(number), DIGEST, "pushed"))
        meter.take(ImageDone(f"app:{number}", DIGEST, "pushed"))
    return meter


def test_the_time_left_is_that_of_the_images_if_they_wait_for_put_image():
    clock = Clock()
    meter = waiting_for_put_image(clock, images=100)
    meter.take(LayerStarted("20", "layer", 1, "app:20"))
    by_bytes = meter.totals().left
    meter.take(Limited("PutImage", 10, "quota"))
    assert by_bytes == pytest.approx(90, rel=0.15)  # a byte an image, and one a second
    for number in range(10, 100):
        meter.take(LayerStarted(f"all{number}", "layer", 1, f"app:{number}"))
        meter.take(PartSent(f"all{number}", 1, 1))
        meter.take(LayerDone(f"all{number}", DIGEST, "pushed"))
    assert meter.totals().left == pytest.approx(90, rel=0.15)  # no byte is left; 90 images are


@pytest.mark.parametrize("limits", [(), (Limited("PutImage", 2, "quota"),)])
def test_images_that_all_end_after_the_bytes_are_timed_from_there(limits):
    clock = Clock()
    meter = Meter(clock, 40)
    for number in range(40):
        meter.take(ImageStarted(f"app:{number}", f"app:{number}"))
        meter.take(ImagePlanned(f"app:{number}", 1, 1000, 0, 0))
        meter.take(LayerStarted(str(number), "layer", 1000, f"app:{number}"))
    for _ in range(100):
        clock.now += 1
        for number in range(40):
            meter.take(PartSent(str(number), 10, 10))
    for number in range(40):
        meter.take(LayerDone(str(number), DIGEST, "pushed"))
    for number in range(10):
        clock.now += 0.5
        for limited in limits:
            meter.take(limited)
        meter.take(ImageDone(f"app:{number}", DIGEST, "pushed"))
    assert meter.totals().left == pytest.approx(15, rel=0.2)


def test_retries_and_throttles_are_in_the_totals():
    totals = totals_after(Retrying("PutImage", 1, 0.1, "slow", throttled=True), Retrying("PutImage", 2, 0.1, "reset"))
    assert (totals.retries, totals.throttled) == (2, 1)


def test_images_that_were_not_looked_at_yet_are_estimated_from_the_others():
    totals = totals_after(*PLAN, *TWO_LAYERS, images=4)
    assert (totals.size, totals.estimated) == (1200, True)
    totals = totals_after(*PLAN, *TWO_LAYERS, images=1)
    assert (totals.size, totals.estimated) == (300, False)


keys = st.sampled_from("abc")
places = st.sampled_from([API, WEB])
sizes = st.integers(0, 10**9)
any_event = st.one_of(
    st.builds(ImageStarted, st.just("x"), places),
    st.builds(ImagePlanned, places, st.integers(0, 9), sizes, st.integers(0, 9), sizes),
    st.builds(LayerStarted, keys, keys, sizes, places),
    st.builds(PartSent, keys, st.integers(-(10**9), 10**9), sizes),
    st.builds(LayerDone, keys, st.just(DIGEST), st.sampled_from(["pushed", "present"])),
    st.builds(LayerFailed, keys),
    st.builds(ImageDone, places, st.just(DIGEST), st.sampled_from(["pushed", "present"])),
    st.builds(ImageFailed, places, st.just("because")),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(any_event, max_size=40))
def test_once_all_images_have_ended_all_bytes_are_read(events):
    """Once all images have ended, all bytes count as read, whatever came before."""
    ends = [event for place in (API, WEB) for event in (ImageDone(place, DIGEST, "pushed"),)]
    layers_end = [LayerFailed(key) for key in "abc"]
    totals = totals_after(*events, *layers_end, *ends)
    assert totals.read == totals.size
    assert (totals.in_flight, totals.rate, totals.left) == (0, None, None)


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (-5, "0 B"), (999, "999 B"), (1000, "1.0 KiB"), (1536, "1.5 KiB"), (MiB - 1, "1.0 MiB"),
     (99.94 * MiB, "99.9 MiB"), (99.96 * MiB, "100 MiB"), (210 * MiB, "210 MiB"), (1.2 * GiB, "1.2 GiB"),
     (3000 * 1024 * GiB, "3000 TiB")],
)  # fmt: skip
def test_sizes_have_at_most_one_decimal(size, text):
    assert size_text(size) == text


@given(st.integers(0, 900 * 1024 * GiB))
def test_sizes_fit_their_column(size):
    assert len(size_text(size)) <= 8


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (16.4, "0:16"), (59.6, "1:00"), (3723, "1:02:03"), (273600, "3 d 4 h")]
)
def test_times_read_like_a_clock(seconds, text):
    assert time_text(seconds) == text


def test_a_hundred_percent_is_all_of_it():
    assert [percent_text(*case) for case in ((0, 3), (999, 1000), (3, 3), (9, 3), (-1, 3), (0, 0))] == [
        "  0%", " 99%", "100%", "100%", "  0%", "100%",
    ]  # fmt: skip


@given(st.text(max_size=40), st.integers(0, 40))
def test_a_shortened_name_fits_and_keeps_its_ends(text, width):
    short = shortened(text, width, "…")
    assert len(short) <= width
    if 3 <= width < len(text):
        assert short[0] == text[0]
        assert short[-1] == text[-1]


LIMITS = {
    "PutImage 8/s (quota 10/s)": Limited("PutImage", 8.0, "quota", 10),
    "held to 1.2 UploadLayerPart/s by throttling (204 so far)": Limited(
        "UploadLayerPart", 1.24, "throttling", 500, 204
    ),
    "--bandwidth 50MB/s": Limited("bandwidth", 50_000_000, "user"),
    "docker.io 0.5 requests/s (plan)": Limited("docker.io", 0.5, "user"),
}


@pytest.mark.parametrize("words", LIMITS)
def test_a_screen_names_the_limit_while_it_binds(words: str) -> None:
    screen = Screen(100, 24)
    run_three_images(screen, screen.face.take)
    screen.face.take(LIMITS[words])
    assert f"limit: {words}" in screen.paint()
    screen.clock.now += 2
    assert f"limit: {words}" in screen.paint()
    screen.clock.now += 1
    assert not any("limit:" in line for line in screen.paint())


def test_a_screen_names_all_limits_that_bind_and_none_at_its_end() -> None:
    screen = Screen(100, 24)
    run_three_images(screen, screen.face.take)
    for limited in (LIMITS["--bandwidth 50MB/s"], LIMITS["PutImage 8/s (quota 10/s)"]):
        screen.face.take(limited)
    assert "limit: --bandwidth 50MB/s; PutImage 8/s (quota 10/s)" in screen.paint()
    assert not any("limit:" in line for line in screen.close())


def test_a_heartbeat_names_the_limit() -> None:
    clock, file = Clock(), io.StringIO()
    face = PlainDisplay(Sink(file), clock=clock)
    run_three_images(None, face.take)
    file.truncate(0)
    clock.now += 5
    face.take(Limited("PutImage", 8.0, "quota", 10))
    face.tick()
    assert file.getvalue().rstrip().endswith(", PutImage 8/s (quota 10/s)")
