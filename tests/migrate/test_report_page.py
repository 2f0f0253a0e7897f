"""The report of a run as a page: from the run itself, its journal or its result; what no name can do to it."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from anyio import to_thread

from asyncpush.errors import JournalError, UsageError
from asyncpush.events import Event, LayerDone, LayerStarted, Notice, PartSent, RequestDone
from asyncpush.journal.reports import kept_runs
from asyncpush.migrate.report_page import render_report, write_report
from asyncpush.migrate.run_document import ErrorEntry, ImageEntry, RunDocument, read_documents
from asyncpush.model import Digest
from asyncpush.timeline import TimelineRecorder
from support.browser import browser
from support.commands import run_beside
from support.migrations import Bench, layer

EVIL = "</script x></script><script>document.title='broken'</script><img src=x onerror=alert(1)>\u2028&amp;"


def data_of(page: str) -> list[dict[str, Any]]:
    """The data that a browser finds in a page."""
    [text] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    return json.loads(text)


def document(*images: ImageEntry, **members: Any) -> RunDocument:
    return RunDocument(**{"state": "failed", "images": list(images), **members})


async def test_a_run_its_journal_and_its_result_make_the_same_report(here: Bench) -> None:
    image = here.hold("team/app", "1.0", layer(1), layer(2))
    plan = here.plan({"from": "team/app", "tags": ["1.0"]}, {"from": "team/gone", "tags": ["9"]})
    places = {name: here.folder / f"{name}.html" for name in ("run", "journal", "result")}

    ran = await run_beside("migrate", plan, "--output", "json", "--report", places["run"])
    (here.folder / "result.json").write_text(ran.out)
    made = [
        await run_beside("report", here.folder / "plan.journal", "--html", places["journal"]),
        await run_beside("report", here.folder / "result.json", "--html", places["result"]),
    ]

    assert ran.status == 1
    assert [(each.status, each.out, each.err) for each in made] == [(0, "", "")] * 2
    [run] = data_of(places["run"].read_text())
    assert places["journal"].read_text() == places["run"].read_text()
    [result] = data_of(places["result"].read_text())
    members = ("state", "started", "images", "requests", "seconds")
    assert {name: result[name] for name in members} == {name: run[name] for name in members}
    pushed = next(each for each in run["images"] if each["outcome"] == "pushed")
    assert (pushed["destination"], pushed["digest"], pushed["layersSent"]) == ("team/app:1.0", image["digest"], 3)
    assert 0 <= pushed["begin"] <= pushed["end"] <= run["seconds"]
    [failed] = [each for each in run["images"] if each["outcome"] == "failed"]
    assert (failed["destination"], failed["error"]["origin"]) == ("team/gone:9", "source")
    timeline = run["timeline"]
    assert sorted(each["outcome"] for each in timeline["layers"]) == ["pushed"] * 3
    assert sum(each["sent"] for each in timeline["intervals"]) == run["sent"] == pushed["bytesSent"]
    assert timeline["operations"]["PutImage"]["succeeded"] == 1


async def test_each_process_of_a_resumed_run_has_a_part(here: Bench) -> None:
    here.hold("team/app", "1.0", layer(1))
    plan = here.plan({"from": "team/app"})
    journal = here.folder / "plan.journal"
    with anyio.CancelScope() as scope:

        def interrupt(event: Event) -> None:
            if isinstance(event, PartSent):
                scope.cancel()

        await here.run(plan, emit=interrupt)
    [interrupted] = await to_thread.run_sync(read_documents, journal)
    await here.run(plan)

    parts = await to_thread.run_sync(read_documents, journal)
    [kept] = await to_thread.run_sync(kept_runs, journal)

    assert parts[0] == interrupted
    assert [(part.state, part.resumed) for part in parts] == [("interrupted", False), ("finished", True)]
    assert (kept.reports, kept.sent) == (2, sum(part.sent or 0 for part in parts))
    assert parts[0].timeline is not None
    # Layers that Ctrl-C stopped have not failed.
    assert {layer.outcome for layer in parts[0].timeline.layers} <= {"pushed", "interrupted"}
    assert "interrupted" in {layer.outcome for layer in parts[0].timeline.layers}


async def test_a_run_of_last_week_can_be_chosen_by_its_number(here: Bench) -> None:
    here.hold("team/app", "1.0", layer(1))
    plan, journal = here.plan({"from": "team/app"}), here.folder / "plan.journal"
    await here.run(plan)
    await here.run(plan)

    first = await to_thread.run_sync(read_documents, journal, 1)
    last = await to_thread.run_sync(read_documents, journal)
    shown = await run_beside("journal", "show", "--runs", journal)

    assert [[image.outcome for image in part.images] for part in (first[0], last[0])] == [["pushed"], ["present"]]
    assert re.fullmatch(r"run 1: finished, .* sent in .*\nrun 2: finished, .*; 0 B sent in .*\n", shown.out)
    with pytest.raises(UsageError, match="has no run 3"):
        await to_thread.run_sync(read_documents, journal, 3)


async def test_an_older_journal_gains_reports_and_tells_what_it_has(here: Bench) -> None:
    """Before it kept reports, or after a kill, a journal knows how images ended."""
    here.hold("team/app", "1.0", layer(1))
    journal = here.folder / "plan.journal"
    await here.run(here.plan({"from": "team/app"}))
    with closing(sqlite3.connect(journal)) as connection:
        connection.execute("DROP TABLE report")

    [known] = await to_thread.run_sync(read_documents, journal)
    await here.run(here.plan({"from": "team/app"}))
    runs = await to_thread.run_sync(kept_runs, journal)

    assert [(image.outcome, image.begin) for image in known.images] == [("pushed", None)]
    assert known.note.startswith("The journal has no report of this run")
    assert [run.reports for run in runs] == [0, 1]


async def test_pruned_runs_leave_no_reports_and_merged_ones_bring_theirs(here: Bench) -> None:
    here.hold("team/app", "1.0", layer(1))
    journal, merged = here.folder / "plan.journal", here.folder / "merged.journal"
    await here.run(here.plan({"from": "team/app"}))

    for _ in range(2):  # the second time adds nothing
        assert (await run_beside("journal", "merge", journal, "--into", merged)).status == 0
    before = await to_thread.run_sync(read_documents, merged)
    assert before == await to_thread.run_sync(read_documents, journal)
    await run_beside("journal", "prune", merged, "--older-than", "0s")

    with closing(sqlite3.connect(merged)) as connection:
        assert connection.execute("SELECT count(*) FROM report").fetchone() == (0,)


async def test_reports_of_the_last_31_runs_are_kept(here: Bench) -> None:
    path, plan = here.folder / "plan.journal", here.plan({"from": "team/app"})
    here.hold("team/app", "1.0", layer(1))
    for _ in range(33):
        await here.run(plan)

    runs = await to_thread.run_sync(kept_runs, path)

    assert [run.reports for run in runs] == [0, 0] + [1] * 31


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"images": 7}', '{"images": [{"seconds": "x"}]}', "\0"])
def test_a_file_that_is_neither_journal_nor_result_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "file"
    path.write_text(text)
    with pytest.raises(UsageError, match="neither a journal nor a result"):
        read_documents(path)


async def test_a_report_that_is_damaged_is_an_error(here: Bench) -> None:
    here.hold("team/app", "1.0", layer(1))
    await here.run(here.plan({"from": "team/app"}))
    with closing(sqlite3.connect(here.folder / "plan.journal")) as connection:
        connection.execute("UPDATE report SET document = x'00'")
        connection.commit()
    with pytest.raises(JournalError, match="a report that can't be read"):
        await to_thread.run_sync(read_documents, here.folder / "plan.journal")


def test_a_result_of_push_makes_a_report_without_a_timeline(tmp_path: Path) -> None:
    result = {"source": "oci:app", "destination": "app:1", "outcome": "pushed", "bytesSent": 7, "referrers": []}
    path = tmp_path / "result.json"
    path.write_text(json.dumps({"version": 1, "images": [result], "totals": {"bytesSent": 7}}))

    [read] = read_documents(path)

    assert (read.state, read.sent, read.timeline, read.images[0].destination) == ("finished", 7, None, "app:1")


def test_no_name_can_end_the_script_that_holds_the_data() -> None:
    image = ImageEntry(source=EVIL, destination=EVIL, outcome="failed", error=ErrorEntry(EVIL))

    page = render_report([document(image)])

    [raw] = re.findall(r'id="data">(.*?)</script>', page, re.DOTALL)
    assert not set("<>&\u2028\u2029") & set(raw)
    assert data_of(page)[0]["images"][0]["destination"] == EVIL


def test_a_long_run_takes_bounded_memory() -> None:
    now = 0.0
    recorder = TimelineRecorder(lambda: now)
    for number in range(5_000):
        key = str(number)
        recorder(LayerStarted(key, "layer", 10, "app:1"))
        recorder(PartSent(key, 10, 10))
        recorder(RequestDone("UploadLayerPart", 0.5, "throttled" if number % 2 else "succeeded"))
        now += 1 if number < 4_990 else 2
        recorder(LayerDone(key, Digest("0" * 64), "pushed"))
        recorder(Notice("note"))

    timeline = recorder.timeline()

    assert (len(timeline.layers), timeline.layers_left, len(timeline.notices)) == (2_000, 3_000, 100)
    assert (timeline.width, len(timeline.intervals) <= 600) == (16.0, True)
    assert sum(interval.sent for interval in timeline.intervals) == 50_000
    assert sum(interval.throttled for interval in timeline.intervals) == 2_500
    # The longest ones are kept.
    assert sum(layer.end - layer.begin == 2 for layer in timeline.layers) == 10
    assert (timeline.operations["UploadLayerPart"].throttled, timeline.operations["UploadLayerPart"].seconds) == (
        2_500,
        2_500.0,
    )


async def test_a_browser_groups_searches_and_sorts_on_a_phone(tmp_path: Path, need: Callable[[str], str]) -> None:
    chromium = need("chromium")
    recorder = TimelineRecorder(lambda: 0.0)
    recorder(PartSent("layer", 10, 10))
    failed = ImageEntry(outcome="failed", error=ErrorEntry("ECR has no app:1", code="LayersNotFoundException"))
    images = [
        msgspec.structs.replace(failed, destination=name, source=f"docker://h/{name}", error=replace_name(failed, name))
        for name in ("team/one:1.0", "team/two:2.0")
    ]
    pushed = [
        ImageEntry(destination=f"app{n}:1", outcome="pushed", bytes_sent=n, seconds=n, begin=0, end=n)
        for n in (2, 9, 5)
    ]
    evil = ImageEntry(source=EVIL, destination=EVIL, outcome="failed", error=ErrorEntry(EVIL))
    path = tmp_path / "report.html"
    run = document(*images, *pushed, evil, seconds=9.0, timeline=recorder.timeline())
    await to_thread.run_sync(write_report, path, [run])

    async with browser(chromium) as page:
        await page.open(path.as_uri(), width=390, dark=True)
        await page.wait_for("document.querySelectorAll('#images tbody tr').length === 6")
        assert await page.evaluate("document.documentElement.scrollWidth") == 390
        counts = await page.evaluate("[...document.querySelectorAll('#failures summary b')].map(b => b.innerText)")
        assert counts == ["2 images", "1 image"]
        await page.evaluate("document.querySelectorAll('#images th button')[3].click()")
        first = "[...document.querySelectorAll('#images tbody tr')].map(row => row.cells[0].innerText).slice(0, 3)"
        assert await page.evaluate(first) == ["app9:1", "app5:1", "app2:1"]
        await page.evaluate("$('search').value = 'TEAM/TWO'; $('search').dispatchEvent(new Event('input'))")
        assert await page.evaluate("document.querySelectorAll('#images tbody tr').length") == 1
        assert await page.evaluate("document.querySelectorAll('#course .lane').length") == 3
        assert (await page.evaluate("document.title"), page.problems) == ("asyncpush report", [])


def replace_name(entry: ImageEntry, name: str) -> ErrorEntry:
    assert entry.error is not None
    return msgspec.structs.replace(entry.error, message=entry.error.message.replace("app:1", name))
