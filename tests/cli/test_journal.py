"""``asyncpush journal``: what people and programs are shown of a journal, and what it forgets when it is asked to."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path

import anyio
import pytest
from anyio import to_thread

from asyncpush.journal import open_journal
from asyncpush.model import Upload
from support.commands import Ran, run_cli, run_here
from support.journals import APP, OTHER, digest, layer, manifest

DAY = 24 * 60 * 60
#: 2026-01-02 03:04:05 UTC.
BEGIN = 1_767_323_045.0
SURROGATE_COPY = f"oci:caf\udce9:1 -> {APP}:bad"


async def _write(path: Path, begin: float) -> None:
    now = begin

    def clock() -> float:
        return now

    async with open_journal(path, clock=clock) as journal:
        await journal.begin_run("nightly", fresh=False)
        await journal.image_finished(
            f"docker://a.test/app:1 -> {APP}:1", source_digest=digest("s"), digest=digest("d"), outcome="pushed"
        )
        now += 60
        await journal.end_run(0)
        now += DAY
        await journal.begin_run("nightly", fresh=False)
        await journal.image_finished(
            f"docker://a.test/app:2 -> {APP}:2", source_digest=None, digest=digest("e"), outcome="present"
        )
        await journal.image_failed(SURROGATE_COPY, "the source denied it")
        now += 60
        await journal.end_run(1)
        await journal.begin_run("weekly", fresh=False)
        await journal.image_put(APP, manifest("config", "a"), "1")
        await journal.layer_completed(OTHER, f"{digest('diff')}+gzip-1", layer("packed", 3 * 2**20))
        await journal.note_referrers_copied(APP, digest("d"))
        await journal.images_proved(APP, {"1": digest("d")}, deep=True)
        await journal.images_proved(APP, {"1": digest("d"), "2": digest("e")}, deep=False)
        await journal.upload_begun(OTHER, str(digest("big")), Upload("upload-1", 10_485_760, 4200), 10_485_760)
        await journal.part_acknowledged(OTHER, str(digest("big")), Upload("upload-1", 10_485_760, 4200), 10_485_760)


def write(path: Path, begin: float = BEGIN) -> None:
    anyio.run(_write, path, begin)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.journal"


def exported(path: Path) -> list[dict[str, object]]:
    ran = run_here("journal", "export", path)
    assert (ran.status, ran.err) == (0, "")
    return [json.loads(line) for line in ran.out.splitlines()]


def test_show_is_for_people(path: Path) -> None:
    write(path)

    ran = run_here("journal", "show", path)

    assert (ran.status, ran.err) == (0, "")
    assert ran.out.splitlines() == [
        "run 1: finished, 1 image finished, 0 failed; started 2026-01-02 03:04:05 UTC, ended 2026-01-02 03:05:05 UTC",
        "run 2: failed, 1 image finished, 1 failed; started 2026-01-03 03:05:05 UTC, ended 2026-01-03 03:06:05 UTC",
        "run 3: unfinished, 0 images finished, 0 failed; started 2026-01-03 03:06:05 UTC",
        "3 layers in 2 repositories, 3.0 MiB; 2 referenced by images",
        "1 tag known, 1 compressed layer known",
        "2 images proved whole, 1 of them byte for byte; last 2026-01-03 03:06:05 UTC",
        "1 open upload, 10.0 MiB received",
        f"  {OTHER} {digest('big')}: 10.0 MiB received, last 2026-01-03 03:06:05 UTC",
    ]


def test_show_has_a_document_for_programs(path: Path) -> None:
    write(path)

    ran = run_here("journal", "show", path, "--output", "json")
    document = json.loads(ran.out)

    assert document["version"] == 1
    assert {name: value for name, value in document["journal"].items() if not isinstance(value, list)} == {
        "repositories": 2,
        "layers": 3,
        "layersReferenced": 2,
        "layerBytes": 3 * 2**20 + 14,
        "tags": 1,
        "compressed": 1,
        "proofs": 2,
        "deepProofs": 1,
        "lastProof": "2026-01-03T03:06:05Z",
    }
    assert [run["state"] for run in document["journal"]["runs"]] == ["finished", "failed", "unfinished"]
    assert document["journal"]["runs"][1] == {
        "kind": "run",
        "id": 2,
        "plan": "nightly",
        "state": "failed",
        "started": "2026-01-03T03:05:05Z",
        "resumed": None,
        "ended": "2026-01-03T03:06:05Z",
        "finished": 1,
        "failed": 1,
    }
    assert [upload["received"] for upload in document["journal"]["uploads"]] == [10_485_760]


def test_an_empty_journal_says_so(path: Path) -> None:
    anyio.run(_make, path)

    assert run_here("journal", "show", path).out.splitlines()[0] == "no runs"


async def _make(path: Path) -> None:
    async with open_journal(path):
        pass


def test_export_has_a_line_for_each_thing(path: Path) -> None:
    write(path)

    lines = exported(path)

    at = "2026-01-03T03:06:05Z"
    assert [line["id"] for line in lines if line["kind"] == "run"] == [1, 2, 3]
    assert [line for line in lines if line["kind"] != "run"] == [
        {
            "kind": "image",
            "run": 2,
            "copy": f"docker://a.test/app:2 -> {APP}:2",
            "outcome": "present",
            "sourceDigest": None,
            "digest": str(digest("e")),
            "reason": None,
            "at": "2026-01-03T03:05:05Z",
        },
        {
            "kind": "image",
            "run": 2,
            "copy": f"oci:caf\ufffd\ufffd\ufffd:1 -> {APP}:bad",
            "outcome": "failed",
            "sourceDigest": None,
            "digest": None,
            "reason": "the source denied it",
            "at": "2026-01-03T03:05:05Z",
        },
        {
            "kind": "tag",
            "repository": APP,
            "tag": "2",
            "sourceDigest": None,
            "digest": str(digest("e")),
            "at": "2026-01-03T03:05:05Z",
        },
        {"kind": "referrers", "repository": APP, "digest": str(digest("d")), "at": at},
        *(
            {
                "kind": "proof",
                "repository": APP,
                "reference": tag,
                "digest": str(digest(word)),
                "deep": deep,
                "at": at,
            }
            for tag, word, deep in (("1", "d", True), ("2", "e", False))
        ),
        *(
            {"kind": "layer", "repository": APP, "digest": name, "size": 7, "referenced": True}
            for name in sorted(str(digest(word)) for word in ("config", "a"))
        ),
        {
            "kind": "layer",
            "repository": OTHER,
            "digest": str(digest("packed")),
            "size": 3 * 2**20,
            "referenced": False,
        },
        {
            "kind": "compressed",
            "identity": f"{digest('diff')}+gzip-1",
            "mediaType": layer("packed").media_type,
            "digest": str(digest("packed")),
            "size": 3 * 2**20,
        },
        {
            "kind": "upload",
            "repository": OTHER,
            "identity": str(digest("big")),
            "id": "upload-1",
            "partSize": 10_485_760,
            "received": 10_485_760,
            "begun": at,
            "heard": at,
        },
    ]


def test_a_journal_of_many_lines_is_exported_whole(path: Path) -> None:
    anyio.run(_fill, path, 2500)

    assert len({line["digest"] for line in exported(path)}) == 2500


async def _fill(path: Path, count: int) -> None:
    async with open_journal(path) as journal, anyio.create_task_group() as tg:
        for number in range(count):
            tg.start_soon(journal.layer_completed, APP, str(digest(str(number))), layer(str(number)))


async def test_others_read_while_a_run_writes(path: Path) -> None:
    async with open_journal(path) as journal:
        await journal.layer_completed(APP, str(digest("a")), layer("a"))
        shown = await to_thread.run_sync(run_cli, "journal", "show", path)
        assert (shown.status, shown.err) == (0, "")
        assert "1 layer in 1 repository" in shown.out
        lines = await to_thread.run_sync(run_cli, "journal", "export", path)
        assert json.loads(lines.out)["digest"] == str(digest("a"))
        pruned = await to_thread.run_sync(run_cli, "journal", "prune", path)
        assert pruned.status == 2
        assert "another process uses the journal" in pruned.err
        await journal.layer_completed(APP, str(digest("b")), layer("b"))

    async with open_journal(path) as journal:
        assert len(await journal.completed(APP)) == 2


def test_prune_forgets_what_is_old_but_for_runs_that_would_go_on(path: Path) -> None:
    write(path)

    ran = run_here("journal", "prune", path)

    assert (ran.status, ran.err) == (0, "")
    assert ran.out.startswith("deleted 2 runs, 2 images, 1 tag and 1 open upload; ")
    lines = exported(path)
    assert [line["id"] for line in lines if line["kind"] == "run"] == [3]
    assert {line["kind"] for line in lines} == {"run", "layer", "compressed"}


def test_prune_forgets_unfinished_runs_too_if_it_is_told_to(path: Path) -> None:
    write(path)

    ran = run_here("journal", "prune", path, "--all", "--output", "json")

    document = json.loads(ran.out)
    assert document.pop("bytesFreed") >= 0
    assert document == {"version": 1, "runs": 3, "images": 2, "tags": 1, "uploads": 1}
    assert {line["kind"] for line in exported(path)} == {"layer", "compressed"}


def test_prune_forgets_an_unfinished_run_that_another_has_followed(path: Path) -> None:
    anyio.run(_begin_anew, path)

    assert run_here("journal", "prune", path, "--older-than", "0s").out.startswith("deleted 1 run, ")
    assert [line["id"] for line in exported(path)] == [2]


async def _begin_anew(path: Path) -> None:
    async with open_journal(path, clock=lambda: BEGIN) as journal:
        await journal.begin_run("nightly", fresh=True)
        await journal.begin_run("nightly", fresh=True)


@pytest.mark.parametrize(("age", "runs"), [("2d", 1), ("36h", 1), ("1w", 0), ("200000s", 0)])
def test_prune_leaves_what_is_younger(path: Path, age: str, runs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    write(path)
    monkeypatch.setattr("asyncpush.journal.prune.time.time", lambda: BEGIN + 2 * DAY + 100)

    assert run_here("journal", "prune", path, "--older-than", age).out.startswith(f"deleted {runs} run")


def test_prune_gives_the_disk_its_room_back(path: Path) -> None:
    anyio.run(_fill_runs, path)
    before = path.stat().st_size

    ran = run_here("journal", "prune", path, "--all", "--older-than", "0s", "--output", "json")

    freed = json.loads(ran.out)["bytesFreed"]
    assert freed > before / 2
    assert path.stat().st_size == before - freed


async def _fill_runs(path: Path) -> None:
    async with open_journal(path, clock=lambda: BEGIN) as journal:
        await journal.begin_run("nightly", fresh=False)
        async with anyio.create_task_group() as tg:
            for number in range(2000):
                tg.start_soon(journal.image_failed, f"docker://a.test/app:{number} -> {APP}:{number}", "denied")


@pytest.mark.parametrize("age", ["30", "d", "-1d", "1y", ""])
def test_prune_takes_ages_only(path: Path, age: str) -> None:
    write(path)

    ran = run_here("journal", "prune", path, f"--older-than={age}")

    assert ran.status == 2
    assert "--older-than" in ran.err


@pytest.mark.parametrize("command", ["show", "export", "prune"])
def test_a_file_that_is_missing_or_no_journal_is_one_line(tmp_path: Path, command: str) -> None:
    def refused(path: Path) -> Ran:
        ran = run_here("journal", command, path)
        assert (ran.status, ran.out, len(ran.err.splitlines())) == (2, "", 1)
        return ran

    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("not yours")
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "pipe")

    assert "there is no journal" in refused(tmp_path / "missing").err
    assert "there is no journal" in refused(tmp_path / "empty").err
    for name in ("text", "directory", "pipe"):
        assert f"{tmp_path / name} is not an asyncpush journal" in refused(tmp_path / name).err
    assert {file.name for file in tmp_path.iterdir()} == {"empty", "text", "directory", "pipe"}


@pytest.mark.parametrize("command", ["show", "export", "prune"])
def test_a_damaged_journal_is_one_line(path: Path, command: str) -> None:
    write(path)
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (path.stat().st_size - 4096))

    ran = run_here("journal", command, path)

    assert (ran.status, ran.out, len(ran.err.splitlines())) == (1, "", 1)
    assert "is damaged: " in ran.err
    assert "; delete it" in ran.err


ADDRESS = "127.0.0.1:4510/eu-west-1/000000000000/team/app"


async def _write_shard(path: Path, word: str, address: str, *, failed: str = "", ends: bool = True) -> None:
    async with open_journal(path) as journal:
        await journal.begin_run(f"plan {word}", fresh=False)
        key = f"docker://a.test/{word}:1 -> {address}:{word}"
        await journal.image_finished(key, source_digest=digest(word), digest=digest(word), outcome="pushed")
        await journal.image_put(address, manifest("config", word), word)
        await journal.layer_completed(OTHER, str(digest("both")), layer("both"))
        await journal.upload_begun(OTHER, str(digest(word)), Upload(f"upload {word}", 10_485_760, 4200), 10_485_760)
        await journal.note_referrers_copied(address, digest(word))
        await journal.images_proved(address, {word: digest(word)}, deep=True)
        if failed:
            await journal.image_failed(failed, "the source denied it")
        if ends:
            await journal.end_run(int(bool(failed)))


def write_shard(path: Path, word: str, address: str = APP, *, failed: str = "", ends: bool = True) -> Path:
    anyio.run(partial(_write_shard, path, word, address, failed=failed, ends=ends))
    return path


def everything_in(path: Path) -> list[dict[str, object]]:
    """Everything in a journal but the numbers of its runs."""
    lines = run_here("journal", "export", path).out.splitlines()
    rows = [{name: value for name, value in json.loads(line).items() if name not in ("id", "run")} for line in lines]
    return sorted(rows, key=lambda row: json.dumps(row))


def test_merged_journals_make_one_report_and_hold_everything(tmp_path: Path) -> None:
    one, two = write_shard(tmp_path / "one.db", "a"), write_shard(tmp_path / "two.db", "b", ADDRESS)
    into = tmp_path / "all.db"
    done = run_here("journal", "merge", one, two, "--into", into)

    assert done.status == 0, done.err
    assert done.out.splitlines() == [f"{APP}:a@{digest('a')}", f"team/app:b@{digest('b')}"]
    assert done.err == "asyncpush: 2 images in 2 journals: 2 pushed\n"
    both = everything_in(one) + [row for row in everything_in(two) if row.get("digest") != str(digest("both"))]
    uploads = [row for row in both if row["kind"] == "upload"]
    assert len(uploads) == 2
    ours = [row for row in both if not (row["kind"] == "layer" and row in everything_in(one))]
    found = everything_in(into)
    assert all(row in found for row in ours)
    # Merging again adds nothing.
    assert run_here("journal", "merge", one, two, one, "--into", into).status == 0
    assert everything_in(into) == found


def test_what_failed_in_merged_journals_is_one_list(tmp_path: Path) -> None:
    failures = {
        "1-of-5": f"docker://a.test/x:1 -> {APP}:1",
        "2-of-5": f"docker://a.test/y@{digest('y')} -> {ADDRESS}@{digest('y')}",
        "3-of-5": f"docker://a.test/z:1 (linux/amd64,linux/arm64) -> {APP}:z",
        "4-of-5": f"docker://a.test/all -> {APP}@images[3]",
    }
    files = [write_shard(tmp_path / f"plan.{name}.journal", name, failed=key) for name, key in failures.items()]
    failed = tmp_path / "failed.txt"
    done = run_here("journal", "merge", *files, "--into", tmp_path / "all.db", "--failed-out", failed)

    assert done.status == 1
    assert failed.read_text().splitlines() == [
        f"docker://a.test/x:1 {APP}:1",
        f"docker://a.test/y@{digest('y')} team/app",
        f"# docker://a.test/z:1 to {APP}:z: the source denied it",
        f"# docker://a.test/all to {APP}: the source denied it",
    ]
    assert run_here("plan", "check", failed).status == 0
    assert f"asyncpush: error: {APP}:1: the source denied it\n" in done.err
    assert "asyncpush: error: there is no journal of shard 0/5\n" in done.err
    assert done.err.endswith("asyncpush: 8 images in 4 journals: 4 pushed, 4 failed\n")


def test_a_run_that_has_not_ended_is_no_success(tmp_path: Path) -> None:
    one = write_shard(tmp_path / "one.db", "a", ends=False)
    done = run_here("journal", "merge", one, "--into", tmp_path / "all.db", "--output", "json")

    assert done.status == 1
    assert f"{one}: its run has not ended; run that shard again" in done.err
    document = json.loads(done.out)
    assert [journal["state"] for journal in document["journals"]] == ["unfinished"]
    assert document["totals"] == {"images": 1, "pushed": 1}


def test_the_later_of_two_records_counts_when_journals_are_merged(tmp_path: Path) -> None:
    key = f"docker://a.test/a:1 -> {APP}:a"
    early = write_shard(tmp_path / "early.db", "b", failed=key)
    late = write_shard(tmp_path / "late.db", "a")
    into = tmp_path / "all.db"
    done = run_here("journal", "merge", late, early, "--into", into)
    assert f"{APP}:a@{digest('a')}" in done.out
    assert "failed" not in done.err.rpartition(": ")[2]


def test_what_can_not_be_merged_is_said(tmp_path: Path) -> None:
    one, rubbish = write_shard(tmp_path / "one.db", "a"), tmp_path / "rubbish"
    rubbish.write_bytes(b"rubbish" * 100)
    into = tmp_path / "all.db"
    assert "no journal is named" in run_here("journal", "merge", "--into", into).err
    assert run_here("journal", "merge", one).status == 2
    assert "is not an asyncpush journal" in run_here("journal", "merge", one, rubbish, "--into", into).err
    assert "there is no journal" in run_here("journal", "merge", tmp_path / "none", "--into", into).err
    assert "is not an asyncpush journal" in run_here("journal", "merge", one, "--into", rubbish).err
    assert "can't be merged into itself" in run_here("journal", "merge", one, "--into", one).err
