"""What the journal is told is there again when it is opened again."""

from __future__ import annotations

import stat
from pathlib import Path

import anyio
import pytest
from anyio import to_thread

from asyncpush.errors import UsageError
from asyncpush.journal import FinishedImage, KnownImage, open_journal
from asyncpush.journal.export import LayerRow, rows
from asyncpush.model import OpenUpload, Upload
from asyncpush.protocols import Journal
from support.journals import APP, ELSEWHERE, HOST, OTHER, UPLOAD, digest, layer, manifest


async def layers_in(path: Path) -> set[LayerRow]:
    """The layers of all repositories, as the journal's export has them."""
    return await to_thread.run_sync(lambda: {row for row in rows(path) if isinstance(row, LayerRow)})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.journal"


class Clock:
    """A clock that stands until it is set."""

    now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


async def test_an_upload_goes_on_from_the_last_acknowledged_byte(path: Path) -> None:
    async with open_journal(path) as journal:
        assert await journal.open_upload(APP, "blob") is None
        await journal.upload_begun(APP, "blob", UPLOAD, 5_242_880)
        await journal.part_acknowledged(APP, "blob", UPLOAD, 5_242_880)
        await journal.part_acknowledged(APP, "blob", UPLOAD, 10_485_760)

    async with open_journal(path) as journal:
        typed: Journal = journal
        assert await typed.open_upload(APP, "blob") == OpenUpload(UPLOAD, 5_242_880, 10_485_760)
        assert await journal.open_upload(OTHER, "blob") is None
        assert await journal.open_upload(APP, "another") is None


async def test_a_new_upload_replaces_the_old_one_and_its_late_parts(path: Path) -> None:
    """A new upload takes the place of the old one, whose late parts count for nothing."""
    newer = Upload("upload-2", 10_485_760, 1000)
    async with open_journal(path) as journal:
        await journal.upload_begun(APP, "blob", UPLOAD, 5_242_880)
        await journal.part_acknowledged(APP, "blob", UPLOAD, 5_242_880)
        await journal.upload_begun(APP, "blob", newer, 6_000_000)
        await journal.part_acknowledged(APP, "blob", UPLOAD, 10_485_760)

        assert await journal.open_upload(APP, "blob") == OpenUpload(newer, 6_000_000, 0)


async def test_parts_that_are_heard_of_late_take_nothing_back(path: Path) -> None:
    async with open_journal(path) as journal:
        await journal.upload_begun(APP, "blob", UPLOAD, 5_242_880)
        await journal.part_acknowledged(APP, "blob", UPLOAD, 10_485_760)
        await journal.part_acknowledged(APP, "blob", UPLOAD, 5_242_880)

        assert (await journal.open_upload(APP, "blob")).received == 10_485_760


async def test_an_upload_is_over_when_it_is_lost_or_complete(path: Path) -> None:
    async with open_journal(path) as journal:
        for identity in ("lost", str(digest("whole")), "other"):
            await journal.upload_begun(APP, identity, UPLOAD, 5_242_880)
        await journal.upload_lost(APP, "lost")
        await journal.layer_completed(APP, str(digest("whole")), layer("whole"))

    async with open_journal(path) as journal:
        assert await journal.open_upload(APP, "lost") is None
        assert await journal.open_upload(APP, str(digest("whole"))) is None
        assert await journal.open_upload(APP, "other") is not None


async def test_an_upload_that_was_silent_for_a_day_is_not_gone_on_with(path: Path) -> None:
    clock = Clock()
    async with open_journal(path, clock=clock) as journal:
        await journal.upload_begun(APP, "blob", UPLOAD, 5_242_880)
        clock.now += 20 * 60 * 60
        await journal.part_acknowledged(APP, "blob", UPLOAD, 5_242_880)
        clock.now += 24 * 60 * 60
        assert await journal.open_upload(APP, "blob") is not None
        clock.now += 1
        assert await journal.open_upload(APP, "blob") is None


async def test_layers_are_known_by_repository_and_may_be_lost(path: Path) -> None:
    async with open_journal(path) as journal:
        for repository, word in ((APP, "a"), (APP, "b"), (APP, "c"), (OTHER, "a")):
            await journal.layer_completed(repository, str(digest(word)), layer(word))
        await journal.layers_lost(APP, [digest("b"), digest("never seen")])
        await journal.layers_lost("nowhere/at-all", [digest("a")])

    async with open_journal(path) as journal:
        assert await journal.completed(APP) == {digest("a"), digest("c")}
        assert await journal.completed(OTHER) == {digest("a")}
        assert await journal.completed(HOST) == frozenset()


async def test_what_a_compressed_layer_became_is_known_without_its_repository(path: Path) -> None:
    identity = f"{digest('diff')}+gzip-1"
    async with open_journal(path) as journal:
        await journal.layer_completed(APP, identity, layer("packed", 2**70))
        await journal.layer_completed(APP, str(digest("plain")), layer("plain"))
        assert dict(journal.compressed) == {identity: layer("packed", 2**70)}
        await journal.layers_lost(APP, [digest("packed")])

    async with open_journal(path) as journal:
        # A size beyond what the file can hold is bounded: it is a claim, and not worth failing for.
        assert dict(journal.compressed) == {identity: layer("packed", 2**63 - 1)}
        assert await journal.completed(APP) == {digest("plain")}


async def test_an_image_refers_to_its_layers_also_to_earlier_ones(path: Path) -> None:
    """An image refers to its layers, including those that were there before it."""
    async with open_journal(path) as journal:
        await journal.layer_completed(APP, str(digest("a")), layer("a"))
        await journal.layer_completed(APP, str(digest("unreferenced")), layer("unreferenced"))
        await journal.layer_completed(OTHER, str(digest("a")), layer("a"))
        await journal.layer_completed(ELSEWHERE, str(digest("a")), layer("a"))
        await journal.image_put(APP, manifest("config", "a", "there before", foreign="windows"), None)
        await journal.layer_completed(APP, str(digest("a")), layer("a"))

    words = {str(digest(word)): word for word in ("a", "config", "there before", "unreferenced", "windows")}
    held = [(row.repository, words[row.digest], row.referenced) for row in await layers_in(path)]
    assert sorted(held) == [
        (ELSEWHERE, "a", False),
        (APP, "a", True),
        (APP, "config", True),
        (APP, "there before", True),
        (APP, "unreferenced", False),
        (OTHER, "a", False),
    ]


async def test_of_many_layers_those_that_matter_are_asked_for(path: Path) -> None:
    """A base layer is in every repository: one of those that it can be mounted from is enough."""
    async with open_journal(path) as journal:
        for number in range(30):
            await journal.image_put(f"{HOST}/team/app-{number}", manifest("config", "base", str(number)), None)
        await journal.layer_completed(APP, str(digest("unreferenced")), layer("unreferenced"))
        await journal.image_put(ELSEWHERE, manifest("config", "elsewhere"), None)
        wanted = [digest(word) for word in ("base", "7", "unreferenced", "elsewhere")]
        more = [digest(f"nobody's {number}") for number in range(1000)]

        sources = await journal.mount_sources(HOST, [*more, *wanted])
        assert sources.pop(digest("base")).startswith(f"{HOST}/team/app-")
        assert sources == {digest("7"): f"{HOST}/team/app-7"}
        assert await journal.completed(f"{HOST}/team/app-7", [*more, *wanted]) == {digest("base"), digest("7")}
        assert await journal.completed(f"{HOST}/team/app-7", []) == frozenset()


async def test_a_foreign_layer_is_referenced_where_it_was_pushed(path: Path) -> None:
    async with open_journal(path) as journal:
        await journal.layer_completed(APP, str(digest("windows")), layer("windows"))
        await journal.image_put(APP, manifest("config", foreign="windows"), "1.0")

    windows = LayerRow(repository=APP, digest=str(digest("windows")), size=layer("windows").size, referenced=True)
    assert windows in await layers_in(path)


async def test_more_layers_than_one_statement_takes_are_looked_up(path: Path) -> None:
    digests = [digest(str(number)) for number in range(20)]
    async with open_journal(path) as journal, anyio.create_task_group() as tg:
        for number in range(20):
            tg.start_soon(journal.layer_completed, APP, str(digests[number]), layer(str(number)))
    async with open_journal(path) as journal:
        assert await journal.completed(APP, digests * 100) == set(digests)


async def test_an_interrupted_run_goes_on_and_knows_what_it_has_finished(path: Path) -> None:
    clock = Clock()
    async with open_journal(path, clock=clock) as journal:
        first = await journal.begin_run("plan", fresh=False)
        assert (first.id, first.resumed, first.finished, first.started.timestamp()) == (1, False, 0, clock.now)
        await journal.image_finished(
            f"docker://a:1 -> {APP}:1", source_digest=digest("s"), digest=digest("d"), outcome="pushed"
        )
        await journal.image_finished(
            f"docker://b:1 -> {OTHER}:1", source_digest=None, digest=digest("e"), outcome="present"
        )
        await journal.image_failed(f"docker://c:1 -> {APP}:2", "denied")
        live = dict(journal.finished)

    clock.now += 100
    async with open_journal(path, clock=clock) as journal:
        assert journal.finished == {}
        state = await journal.begin_run("plan", fresh=False)
        assert (state.id, state.resumed, state.finished, state.started) == (1, True, 2, first.started)
        assert dict(journal.finished) == live
        assert live == {
            f"docker://a:1 -> {APP}:1": FinishedImage(digest("s"), digest("d"), "pushed"),
            f"docker://b:1 -> {OTHER}:1": FinishedImage(None, digest("e"), "present"),
        }


async def test_a_run_that_has_ended_is_over_whether_it_had_failures_or_not(path: Path) -> None:
    copy = f"docker://a:1 -> {APP}:1"
    async with open_journal(path) as journal:
        states = []
        for failed in (1, 2, 0, 0):
            states.append(await journal.begin_run("plan", fresh=False))
            await (
                journal.image_failed(copy, "denied")
                if failed
                else journal.image_finished(copy, source_digest=None, digest=digest("d"), outcome="pushed")
            )
            await journal.end_run(failed)

        interrupted = await journal.begin_run("plan", fresh=False)
        states += [interrupted, await journal.begin_run("plan", fresh=False)]

    assert [(state.id, state.resumed) for state in states] == [
        (1, False), (2, False), (3, False), (4, False), (5, False), (5, True),
    ]  # fmt: skip


async def test_plans_have_runs_of_their_own_and_a_run_can_begin_anew(path: Path) -> None:
    async with open_journal(path) as journal:
        assert (await journal.begin_run("plan", fresh=False)).id == 1
        assert (await journal.begin_run("other", fresh=False)).id == 2
        assert (await journal.begin_run("plan", fresh=True)).id == 3
        assert (await journal.begin_run("plan", fresh=False)).id == 3
        assert (await journal.begin_run("other", fresh=False)).id == 2


async def test_an_image_that_fails_after_all_is_not_finished(path: Path) -> None:
    copy = f"docker://a:1 -> {APP}:1"
    async with open_journal(path) as journal:
        await journal.begin_run("plan", fresh=False)
        await journal.image_finished(copy, source_digest=None, digest=digest("d"), outcome="pushed")
        await journal.image_failed(copy, "gone again")
        assert journal.finished == {}
        assert (await journal.begin_run("plan", fresh=False)).finished == 0


async def test_images_belong_to_a_run(path: Path) -> None:
    async with open_journal(path) as journal:
        with pytest.raises(UsageError, match="no run has begun"):
            await journal.image_failed("a -> b:1", "denied")
        await journal.begin_run("plan", fresh=False)
        await journal.end_run(0)
        with pytest.raises(UsageError, match="no run has begun"):
            await journal.end_run(0)


async def test_images_of_tags_are_known_across_runs_until_replaced(path: Path) -> None:
    """The image of a tag is known across runs, until another image is put there."""
    image = manifest("config", "a")
    async with open_journal(path) as journal:
        await journal.begin_run("plan", fresh=False)
        for tag, word in (("1", "one"), ("2", "two")):
            await journal.image_finished(
                f"oci:a:{tag} -> {APP}:{tag}", source_digest=digest("s"), digest=digest(word), outcome="pushed"
            )
        await journal.image_finished(f"x -> {APP}:3", source_digest=None, digest=image.digest, outcome="present")
        await journal.image_finished(
            f"x -> {APP}@{digest('y')}", source_digest=None, digest=digest("y"), outcome="pushed"
        )
        await journal.end_run(0)
        await journal.begin_run("plan", fresh=False)
        for tag in ("2", "3", None):
            await journal.image_put(APP, image, tag)
        known = dict(journal.known_images(APP))

    assert known == {"1": KnownImage(digest("s"), digest("one")), "3": KnownImage(None, image.digest)}
    async with open_journal(path) as journal:
        assert dict(journal.known_images(APP)) == known
        assert dict(journal.known_images(OTHER)) == {}


async def test_carried_referrers_are_known_across_runs(path: Path) -> None:
    async with open_journal(path) as journal:
        assert not journal.referrers_copied(APP, digest("a"))
        await journal.note_referrers_copied(APP, digest("a"))
        await journal.note_referrers_copied(APP, digest("a"))
        assert journal.referrers_copied(APP, digest("a"))

    async with open_journal(path) as journal:
        assert journal.referrers_copied(APP, digest("a"))
        assert not journal.referrers_copied(OTHER, digest("a"))


async def test_names_of_files_need_not_be_text(path: Path) -> None:
    copy = f"oci:/data/caf\udce9:1 -> {APP}:1"
    async with open_journal(path) as journal:
        await journal.begin_run("plan", fresh=False)
        await journal.image_failed(copy, "no such file: caf\udce9")
        await journal.image_finished(copy, source_digest=None, digest=digest("d"), outcome="pushed")

    async with open_journal(path) as journal:
        await journal.begin_run("plan", fresh=False)
        assert list(journal.finished) == [copy]


async def test_nobody_else_may_read_the_files(path: Path) -> None:
    async with open_journal(path) as journal:
        await journal.upload_lost(APP, "blob")
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in await to_thread.run_sync(_files, path)}

    assert modes == dict.fromkeys(("run.journal", "run.journal-lock", "run.journal-shm", "run.journal-wal"), 0o600)


def _files(path: Path) -> list[Path]:
    return sorted(path.parent.iterdir())
