"""Many images: what waits is bounded, what was done takes little memory, and what nobody has foreseen fails alone."""

from __future__ import annotations

import json

import anyio
from aiohttp import web
from anyio import to_thread
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncpush.digest_set import PackedMap, PackedNames, PackedSet
from asyncpush.errors import UnforeseenError
from asyncpush.journal import open_journal
from asyncpush.migrate import discovery
from asyncpush.model import Digest
from asyncpush.single_flight import SingleFlight
from asyncpush.sources.registry.blob import RegistryBlob
from support.migrations import bench, keys, layer, only, outcomes


@settings(max_examples=40)
@given(st.lists(st.tuples(st.sampled_from(["put", "discard", "get"]), st.integers(0, 40), st.integers(0, 2**64 - 1))))
def test_a_packed_map_does_what_a_dict_does(steps):
    # Two bytes by which buckets are found, and few others: prefixes and stretches of entries look like one another.
    packed, known = PackedMap(4), {}
    for step, number, value in steps:
        key = b"\0\1" + bytes([number % 3, number % 4])
        if step == "put":
            packed.put(key, value)
            known[key] = value
        elif step == "discard":
            packed.discard(key)
            known.pop(key, None)
        assert packed.get(key) == known.get(key)
        assert (key in packed, len(packed)) == (key in known, len(known))


def test_keys_that_end_in_a_digest_are_told_apart_and_so_are_others():
    found = PackedSet()
    keys = [("a", str(Digest.of(b"1"))), ("b", str(Digest.of(b"1"))), ("a", str(Digest.of(b"2"))), ("a", "gzip:1"), "a"]
    keys += [("a", "b", str(Digest.of(b"1"))), ("a", f"sha256:{'x' * 64}"), ()]
    for number, key in enumerate(keys):
        assert key not in found
        found.add(key)
        assert all((each in found) == (at <= number) for at, each in enumerate(keys))
    found.discard(keys[0])
    assert keys[0] not in found
    assert keys[1] in found


def test_a_name_by_digest_stays_what_it_was_first():
    names = PackedNames()
    names.setdefault(Digest.of(b"1"), "app")
    names.setdefault(Digest.of(b"1"), "other")
    names.setdefault(Digest.of(b"2"), "other")
    assert [names.get(Digest.of(each)) for each in (b"1", b"2", b"3")] == ["app", "other", None]


async def test_a_thing_is_done_once_whether_its_result_is_the_usual_one_or_not():
    once, done = SingleFlight(usual=True), []

    async def work(result):
        done.append(result)
        return result

    for key, result in (("usual", True), ("other", False)):
        assert once.claim(key)
        assert [await once.do(key, lambda result=result: work(result)) for _ in range(2)] == [
            (result, True),
            (result, False),
        ]
        assert not once.claim(key)
        once.forget(key)
        assert await once.do(key, lambda result=result: work(result)) == (result, True)
    assert done == [True, True, False, False]


async def test_discovery_waits_until_what_it_has_found_is_pushed(tmp_path, emulator, monkeypatch):
    keys(monkeypatch)
    monkeypatch.setattr(discovery, "MAX_WAITING", 10)
    monkeypatch.setattr(discovery, "COMPARED_AT_ONCE", 3)
    monkeypatch.setattr(discovery, "READ_AT_ONCE", 2)
    monkeypatch.setattr(discovery, "BLOBS_AT_ONCE", 1)
    held, most = 0, 0

    class Counted(discovery.Backlog):
        async def take(self, found):
            nonlocal held, most
            await super().take(found)
            held += found.weight
            most = max(most, held)

        def give_back(self, found):
            nonlocal held
            held -= found.weight
            super().give_back(found)

    monkeypatch.setattr("asyncpush.migrate.pipeline.Backlog", Counted)
    async with bench(tmp_path, emulator) as made:
        for number in range(8):
            made.hold("team/app", f"1.{number}", layer(0), layer(number))
        path = made.plan({"from": "team/app"})
        report = await made.run(path)
        assert set(outcomes(report).values()) == {"pushed"}
        assert len(await made.stored("team/app")) == len(report.results) == 8
        assert (held, most <= 10) == (0, True)
        # What is there already waits likewise, and so does what is tried again.
        assert set(outcomes(await made.run(path)).values()) == {"present"}
        assert (held, most <= 10) == (0, True)


async def test_what_nobody_has_foreseen_fails_its_image_alone(tmp_path, emulator, monkeypatch):
    keys(monkeypatch)
    stream = RegistryBlob.stream
    async with bench(tmp_path, emulator) as made:
        made.hold("team/good", "1", layer(1))
        bad = made.hold("team/bad", "1", layer(2))
        digest = json.loads(made.layout.files[f"blobs/sha256/{bad['digest'][7:]}"])["layers"][0]["digest"]

        def failing(self, start=0):
            if str(self.descriptor.digest) == digest:
                raise ZeroDivisionError("no such sum")
            return stream(self, start)

        monkeypatch.setattr(RegistryBlob, "stream", failing)
        report = await made.run(made.plan({"from": "team/good"}, {"from": "team/bad"}))
    assert only(report, "team/good:1").outcome == "pushed"
    error = only(report, "team/bad:1").error
    assert isinstance(error, UnforeseenError)
    assert str(error).startswith("this is a bug, please report it: ZeroDivisionError: no such sum (test_scale.py:")
    assert "in failing" in error.traceback
    assert only(report, "team/bad:1").attempts == 1
    database = (tmp_path / "plan.journal").resolve()
    async with open_journal(database):
        pass
    assert b"in failing" in await to_thread.run_sync(database.read_bytes)


async def test_images_go_side_by_side(tmp_path, monkeypatch, emulator):
    """No layer is given out before all have been asked for: images that wait for one another would wait for ever."""
    keys(monkeypatch)
    async with bench(tmp_path, emulator) as here:
        images = [here.hold(f"team/app-{number}", "1", layer(number)) for number in range(6)]
        layers = {
            str(each["digest"])
            for image in images
            for each in json.loads(here.source.blobs[str(image["digest"])])["layers"]
        }
        asked, all_asked = set[str](), anyio.Event()

        @here.source.rule("GET", "/blobs/")
        async def wait(request: web.Request) -> None:
            if (name := request.path.rpartition("/")[2]) in layers:
                asked.add(name)
                if asked == layers:
                    all_asked.set()
                await all_asked.wait()

        with anyio.fail_after(30):
            report = await here.run(here.plan(*({"from": f"team/app-{number}"} for number in range(6))))
        assert set(outcomes(report).values()) == {"pushed"}
