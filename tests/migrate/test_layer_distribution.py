"""One pool over everything: each layer goes to a registry once, images wait for each other, but never in a circle."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

import anyio
import pytest
from anyio.lowlevel import checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncpush.engine.context import PushContext
from asyncpush.engine.image import ImageLayers
from asyncpush.errors import ServiceError, SourceError
from asyncpush.journal import LeftUpload
from asyncpush.migrate import first_uploads
from asyncpush.migrate.layer_distribution import ImageSender, LayerDistributor
from asyncpush.model import Descriptor, Digest, PushedLayer, Upload
from asyncpush.protocols import Part
from asyncpush.settings import Settings
from asyncpush.single_flight import SingleFlight
from asyncpush.sources.blobs import BytesContent, ContentBlob


@dataclass(eq=False)
class Registry:
    """A registry in memory that mounts only what an image refers to."""

    mounting: bool = True
    layers: dict[str, set[Digest]] = field(default_factory=dict)
    referenced: dict[str, set[Digest]] = field(default_factory=dict)
    uploads: Counter[Digest] = field(default_factory=Counter)
    mounts: Counter[bool] = field(default_factory=Counter)


@dataclass(eq=False)
class Repository:
    """A repository of such a registry, as far as sending layers goes."""

    name: str
    state: Registry
    registry: str = "registry"
    failures: int = 0

    @property
    def address(self) -> str:
        return f"{self.registry}/{self.name}"

    async def begin_upload(self) -> Upload:
        await checkpoint()
        if self.failures:
            self.failures -= 1
            raise ServiceError("InitiateLayerUpload", "ServerException", "not now")
        return Upload("upload", 10 * 2**20, 100)

    def encoder(self, upload: Upload, first: int, content: object) -> Encoder:
        return Encoder(first)

    async def send_part(self, upload: Upload, part: Part, left: Any = None) -> None:
        await checkpoint()
        if left:
            left()

    async def complete_upload(self, upload: Upload, digest: Digest) -> Literal["pushed"]:
        await checkpoint()
        self.state.layers.setdefault(self.name, set()).add(digest)
        self.state.uploads[digest] += 1
        return "pushed"

    async def mount(self, digest: Digest, source: str) -> bool:
        await checkpoint()
        granted = self.state.mounting and digest in self.state.referenced.get(source, ())
        self.state.mounts[granted] += 1
        if granted:
            self.state.layers.setdefault(self.name, set()).add(digest)
        return granted

    def put(self, digests: set[Digest]) -> None:
        assert digests <= self.state.layers[self.name]
        self.state.referenced.setdefault(self.name, set()).update(digests)


class Encoder:
    def __init__(self, first: int) -> None:
        self.first, self.size = first, 0

    def add(self, block: memoryview) -> None:
        self.size += len(block)

    def finish(self) -> Part:
        return Part(self.first, self.first + self.size - 1, (b"",), None, 0, "")


def blob(number: int) -> ContentBlob:
    data = number.to_bytes(2, "big")
    return ContentBlob(f"layer {number}", Descriptor("layer", Digest.of(data), 2), BytesContent(data, "layer"))


class Broken:
    """Content that can't be read."""

    label, size = "broken", 2

    def open(self) -> Any:
        raise SourceError("broken can't be read")


async def push(
    distributor: LayerDistributor, repository: Repository, numbers: set[int], *, fails: bool = False
) -> None:
    """What a migration does with one image: all its layers at once, then the manifest."""
    blobs = [blob(number) for number in numbers]
    with distributor.sender(repository, blobs) as sender:
        async with anyio.create_task_group() as tg:
            for each in blobs:
                tg.start_soon(_send, sender, repository, each)
        if fails:
            return
        digests = {each.descriptor.digest for each in blobs}
        repository.put(digests)
        distributor.mark_referenced(repository, digests)


async def _send(sender: ImageSender, repository: Repository, each: ContentBlob) -> None:
    if each.descriptor.digest not in repository.state.layers.get(repository.name, ()):
        await sender.send(repository, each)


async def prepared(registry: Registry, mounts: bool | None = True) -> LayerDistributor:
    distributor = LayerDistributor(PushContext.of(Settings()))

    async def ask() -> bool | None:
        return mounts

    assert await distributor.mounts("registry", ask) is (mounts is not False)
    return distributor


images = st.lists(
    st.tuples(st.integers(0, 4), st.sets(st.integers(0, 7), min_size=1), st.booleans()), min_size=1, max_size=12
)


@settings(max_examples=60, deadline=None)
@given(images, st.booleans(), st.booleans())
def test_all_images_arrive_whoever_waits_for_whom_and_whoever_fails(
    wanted: list[tuple[int, set[int], bool]], mounting: bool, restless: bool
) -> None:
    registry = Registry(mounting)

    async def main() -> None:
        distributor = await prepared(registry)
        # One image a repository: those of one repository share their layers before they get here.
        with anyio.fail_after(20):
            async with anyio.create_task_group() as tg:
                for place, (_, numbers, fails) in enumerate(wanted):
                    tg.start_soon(
                        lambda r, n, f: push(distributor, r, n, fails=f),
                        Repository(f"app-{place}", registry),
                        numbers,
                        fails,
                    )

    with pytest.MonkeyPatch.context() as patch:
        if restless:  # leads pass on whenever they can
            patch.setattr(first_uploads, "MIN_GAIN", float("-inf"))
            patch.setattr(first_uploads, "MIN_LARGE_GAIN", float("-inf"))
            patch.setattr(first_uploads, "CHECK_INTERVAL", 0.001)
        anyio.run(main)

    for place, (_, numbers, fails) in enumerate(wanted):
        if not fails:
            assert {blob(number).descriptor.digest for number in numbers} <= registry.referenced[f"app-{place}"]
    if mounting and not restless and not any(fails for *_, fails in wanted):
        assert set(registry.uploads.values()) == {1}, "each layer goes to the registry once"


class Large:
    """Content that nobody gets to the end of reading, since its repository waits."""

    label, size = "large", 2**40

    def open(self) -> Any:
        raise AssertionError


def large(number: int) -> ContentBlob:
    return ContentBlob("large", Descriptor("layer", Digest.of(b"large %d" % number), Large.size), Large())


@dataclass(eq=False)
class Patient(Repository):
    """A repository that takes a large layer when it is told to: then it fails."""

    goes_on: anyio.Event = field(default_factory=anyio.Event)
    uploads: int = 0

    async def begin_upload(self) -> Upload:
        self.uploads += 1
        if self.uploads == 2:
            await self.goes_on.wait()
            raise ServiceError("InitiateLayerUpload", "ServerException", "not now")
        return await super().begin_upload()


async def test_followers_do_not_wait_for_what_else_their_leader_sends() -> None:
    registry = Registry()
    distributor = await prepared(registry)
    leader = Patient("leader", registry)

    async def lead() -> None:
        with distributor.sender(leader, [blob(1), large(0)]) as sender:
            await sender.send(leader, blob(1))
            with pytest.raises(ServiceError):
                await sender.send(leader, large(0))

    with anyio.fail_after(20):
        async with anyio.create_task_group() as tg:
            tg.start_soon(lead)
            while not registry.uploads:
                await checkpoint()
            async with anyio.create_task_group() as followers:
                for number in range(5):
                    repository = Repository(f"app-{number}", registry)
                    followers.start_soon(push, distributor, repository, {1, 10 + number})
            leader.goes_on.set()

    assert registry.uploads[blob(1).descriptor.digest] == 2, "the leader's, and one follower's"
    assert registry.mounts == {True: 4}


async def test_a_waiting_layer_goes_where_an_image_refers_to_it_soonest() -> None:
    """A waiting layer goes to the repository where an image will refer to it soonest."""
    registry = Registry()
    resources = PushContext.of(Settings(max_layers=1))
    distributor, leader, put = LayerDistributor(resources), Repository("leader", registry), anyio.Event()

    async def lead() -> None:
        with distributor.sender(leader, [blob(1), large(0)]) as sender:
            assert (await sender.send(leader, blob(1))).outcome == "mounted"
            await put.wait()

    with anyio.fail_after(20):
        async with anyio.create_task_group() as tg:
            async with resources.limiter.hold():
                tg.start_soon(lead)
                await anyio.wait_all_tasks_blocked()
                tg.start_soon(push, distributor, Repository("small", registry), {1})
                await anyio.wait_all_tasks_blocked()
            while "small" not in registry.referenced:
                await checkpoint()
            put.set()

    assert set(registry.uploads.values()) == {1}


async def test_what_a_repository_has_is_mounted_once_an_image_refers_to_it() -> None:
    registry = Registry()
    distributor = await prepared(registry)
    leader, each = Repository("leader", registry), blob(1)
    registry.layers["leader"] = {each.descriptor.digest}

    with anyio.fail_after(20):
        async with anyio.create_task_group() as tg:
            with distributor.sender(leader, [], [each]):
                tg.start_soon(push, distributor, Repository("app", registry), {1})
                await anyio.wait_all_tasks_blocked()
                leader.put({each.descriptor.digest})
                distributor.mark_referenced(leader, [each.descriptor.digest])

    assert (registry.mounts, registry.uploads) == ({True: 1}, {})


async def test_of_a_leader_that_fails_one_follower_takes_the_lead() -> None:
    registry = Registry()
    distributor = await prepared(registry)
    fails = anyio.Event()

    async def lead() -> None:
        with distributor.sender(leader, [blob(1), blob(2)]) as sender:
            await sender.send(leader, blob(1))
            await fails.wait()

    leader = Repository("leader", registry)
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tg:
            tg.start_soon(lead)
            await anyio.wait_all_tasks_blocked()
            for number in range(5):
                tg.start_soon(push, distributor, Repository(f"app-{number}", registry), {1, 2})
            fails.set()

    assert registry.uploads == {blob(1).descriptor.digest: 2, blob(2).descriptor.digest: 1}
    assert registry.mounts == {True: 8}


async def test_a_layer_is_mounted_once_an_image_refers_to_it() -> None:
    registry = Registry()
    distributor = await prepared(registry)
    for name in ("one", "two", "three"):
        await push(distributor, Repository(name, registry), {1, 2})

    assert registry.uploads == {blob(1).descriptor.digest: 1, blob(2).descriptor.digest: 1}
    assert registry.mounts == {True: 4}


async def test_what_an_earlier_run_has_brought_is_mounted() -> None:
    registry = Registry()
    digest = blob(1).descriptor.digest
    registry.layers["old"] = registry.referenced["old"] = {digest}
    distributor = await prepared(registry)
    distributor.remember("registry", "registry/old", digest)
    await push(distributor, Repository("new", registry), {1})

    assert not registry.uploads
    assert digest in registry.layers["new"]


async def test_a_registry_that_declines_is_asked_no_more(anyio_backend: str) -> None:
    registry = Registry(mounting=False)
    distributor = await prepared(registry, None)
    for number in range(10):
        await push(distributor, Repository(f"app-{number}", registry), {1, 2})

    assert registry.mounts[False] <= 4
    assert set(registry.uploads.values()) == {10}


async def test_where_nothing_is_mounted_nobody_waits_for_anybody() -> None:
    registry = Registry(mounting=False)
    distributor, blobs = await prepared(registry, mounts=False), [blob(1)]
    one, two = Repository("one", registry), Repository("two", registry)
    with distributor.sender(one, blobs), distributor.sender(two, blobs) as second:
        with anyio.fail_after(5):
            assert (await second.send(two, blobs[0])).outcome == "pushed"


async def test_repositories_that_wait_for_a_slot_get_the_bytes_together() -> None:
    registry = Registry()
    distributor = await prepared(registry, False)
    reads = 0

    class Counted(BytesContent):
        def open(self) -> Any:
            nonlocal reads
            reads += 1
            return super().open()

    each = ContentBlob("layer", blob(1).descriptor, Counted((1).to_bytes(2, "big"), "layer"))
    outcomes: list[PushedLayer | None] = []

    async def one(name: str) -> None:
        outcomes.append(await distributor.upload(Repository(name, registry), each))

    async with anyio.create_task_group() as tg:
        for name in ("one", "two", "three"):
            tg.start_soon(one, name)

    assert [outcome and outcome.outcome for outcome in outcomes] == ["pushed"] * 3
    assert reads == 1
    assert registry.uploads[each.descriptor.digest] == 3


async def test_who_has_a_source_of_its_own_does_not_fail_of_anothers() -> None:
    registry = Registry()
    distributor = await prepared(registry, False)
    good = blob(1)
    bad = ContentBlob("layer", good.descriptor, Broken())
    failures: list[Exception] = []

    async def one(name: str, each: ContentBlob) -> None:
        try:
            await distributor.upload(Repository(name, registry), each)
        except SourceError as error:
            failures.append(error)

    async with anyio.create_task_group() as tg:
        tg.start_soon(one, "bad", bad)
        tg.start_soon(one, "good", good)

    assert len(failures) == 1
    assert set(registry.layers) == {"good"}


async def test_one_repository_that_fails_does_not_fail_the_others_of_a_reading() -> None:
    registry = Registry()
    distributor = await prepared(registry, False)
    failures: list[Exception] = []

    async def one(repository: Repository) -> None:
        try:
            await distributor.upload(repository, blob(1))
        except ServiceError as error:
            failures.append(error)

    async with anyio.create_task_group() as tg:
        tg.start_soon(one, Repository("bad", registry, failures=1))
        tg.start_soon(one, Repository("good", registry))

    assert len(failures) == 1
    assert set(registry.layers) == {"good"}


async def test_who_waits_goes_on_by_itself_when_the_sender_is_cancelled() -> None:
    registry = Registry()
    distributor = await prepared(registry, False)

    class Stuck(Repository):
        async def begin_upload(self) -> Upload:
            await anyio.sleep_forever()
            raise AssertionError

    async with anyio.create_task_group() as tg:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as inner:
                inner.start_soon(distributor.upload, Stuck("stuck", registry), blob(1))
                await checkpoint()
                tg.start_soon(distributor.upload, Repository("patient", registry), blob(1))
                await checkpoint()
                scope.cancel()

    assert set(registry.layers) == {"patient"}


async def test_bytes_that_are_on_their_way_elsewhere_are_not_sent_again() -> None:
    registry = Registry()
    distributor = await prepared(registry)
    here, there = Repository("here", registry), Repository("there", registry)
    other = Repository("there", Registry(), registry="another-registry")
    each = blob(1)
    begun = Repository("begun", registry)
    lengths = {there.address: 700, begun.address: 200, other.address: 900}
    distributor.resume(LeftUpload(address, each.identity, length) for address, length in lengths.items())
    distributor.resume([LeftUpload(there.address, "sha256:other", 5), LeftUpload(there.address, blob(3).identity, 0)])

    assert distributor.bytes_lost(here, [each, blob(2)]) == 700
    assert distributor.bytes_lost(begun, [each]) == 500, "it goes on there, from less"
    assert distributor.bytes_lost(there, [each]) == 0, "it goes on there"
    assert distributor.bytes_lost(here, [blob(3)]) > distributor.bytes_lost(there, [blob(3)]), "its first part may have"
    assert distributor.bytes_lost(other, [each]) == 0, "no registry mounts from another"
    with distributor.sender(there, [each]):
        assert distributor.bytes_lost(here, [each]) == 0, "somebody brings it"
    distributor.mark_referenced(there, [each.descriptor.digest])
    assert distributor.bytes_lost(here, [each]) == 0, "it can be mounted"


@dataclass
class Sender:
    """Sends layers when it is told to, but for a bad one, which fails when it is told to."""

    fails: anyio.Event = field(default_factory=anyio.Event)
    goes_on: anyio.Event = field(default_factory=anyio.Event)
    begun: Counter[str] = field(default_factory=Counter)
    ended: Counter[str] = field(default_factory=Counter)

    async def send(self, repository: Repository, each: ContentBlob) -> PushedLayer:
        self.begun[each.name] += 1
        if each.name == "layer 0":
            await self.fails.wait()
            raise SourceError("layer 0 can't be read")
        await self.goes_on.wait()
        self.ended[each.name] += 1
        return PushedLayer(each.descriptor, 2, "pushed")

    def is_awaited(self, repository: Repository, each: ContentBlob) -> bool:
        return False

    def note_failure(self) -> None:
        pass


async def test_of_an_image_that_fails_those_layers_go_on_that_others_wait_for() -> None:
    sender, once = Sender(), SingleFlight[PushedLayer]()
    repository: Any = Repository("app", Registry())
    bad, good = (ImageLayers(repository, once, sender) for _ in range(2))
    failures: list[SourceError] = []

    async def fail() -> None:
        try:
            await bad.send([blob(0), blob(1), blob(2)], {})
        except SourceError as error:
            failures.append(error)

    with anyio.fail_after(20):
        async with anyio.create_task_group() as tg:
            tg.start_soon(fail)
            await anyio.wait_all_tasks_blocked()
            tg.start_soon(good.send, [blob(1)], {})
            await anyio.wait_all_tasks_blocked()
            sender.fails.set()
            await anyio.wait_all_tasks_blocked()
            assert not failures, "it waits for its last layer"
            sender.goes_on.set()

    assert len(failures) == 1
    assert sender.begun == {"layer 0": 1, "layer 1": 1, "layer 2": 1}
    assert sender.ended == {"layer 1": 1}
    assert [layer.descriptor for layer in bad.sent.values()] == [blob(1).descriptor]
