"""Whatever a journal is told, and whenever it is closed and opened, it knows what a few dicts would know."""

from __future__ import annotations

import itertools
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from anyio.from_thread import start_blocking_portal
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from asyncpush.journal import FinishedImage, KnownImage, SqliteJournal, open_journal
from asyncpush.journal.export import LayerRow, ProofRow, rows
from asyncpush.model import Descriptor, OpenUpload, Upload
from support.journals import APP, OTHER, digest, layer, manifest

WORDS = ("a", "b", "c")
REPOSITORIES = (APP, OTHER)
TAGS = ("1", "2")
PLANS = ("plan", "another")

repositories = st.sampled_from(REPOSITORIES)
words = st.sampled_from(WORDS)
tags = st.sampled_from(TAGS)


@dataclass
class RunModel:
    """A run, as a few values."""

    id: int
    finished: dict[str, FinishedImage] = field(default_factory=dict)
    goes_on: bool = True


class JournalMachine(RuleBasedStateMachine):
    """A journal beside a model of it."""

    def __init__(self) -> None:
        super().__init__()
        self.held = ExitStack()
        self.path = Path(self.held.enter_context(tempfile.TemporaryDirectory())) / "run.journal"
        self.portal = self.held.enter_context(start_blocking_portal())
        self.opened = ExitStack()
        self.open()
        self.uploads: dict[tuple[str, str], OpenUpload] = {}
        self.layers: dict[tuple[str, str], bool] = {}
        self.compressed: dict[str, Descriptor] = {}
        self.known: dict[tuple[str, str], KnownImage] = {}
        self.carried: set[tuple[str, str]] = set()
        self.proved: dict[tuple[str, str], tuple[str, bool]] = {}
        self.runs: dict[str, RunModel] = {}
        self.run: RunModel | None = None
        self.numbers = itertools.count(1)

    def open(self) -> None:
        manager = self.portal.wrap_async_context_manager(open_journal(self.path))
        self.journal: SqliteJournal = self.opened.enter_context(manager)

    def teardown(self) -> None:
        self.opened.close()
        self.held.close()

    @rule()
    def open_again(self) -> None:
        self.opened.close()
        self.open()
        self.run = None

    @rule(repository=repositories, word=words, number=st.integers(1, 3))
    def begin_upload(self, repository: str, word: str, number: int) -> None:
        upload = Upload(f"upload-{number}", 10 * number, 100)
        self.portal.call(self.journal.upload_begun, repository, word, upload, 7 * number)
        self.uploads[repository, word] = OpenUpload(upload, 7 * number, 0)

    @rule(repository=repositories, word=words, number=st.integers(1, 3), received=st.integers(0, 100))
    def acknowledge(self, repository: str, word: str, number: int, received: int) -> None:
        upload = Upload(f"upload-{number}", 10 * number, 100)
        self.portal.call(self.journal.part_acknowledged, repository, word, upload, received)
        there = self.uploads.get((repository, word))
        if there and there.upload == upload:
            most = max(received, there.received)
            self.uploads[repository, word] = OpenUpload(upload, there.part_size, most)

    @rule(repository=repositories, word=words)
    def lose_upload(self, repository: str, word: str) -> None:
        self.portal.call(self.journal.upload_lost, repository, word)
        self.uploads.pop((repository, word), None)

    @rule(repository=repositories, word=words, became=words)
    def complete(self, repository: str, word: str, became: str) -> None:
        self.portal.call(self.journal.layer_completed, repository, word, layer(became))
        self.uploads.pop((repository, word), None)
        self.layers.setdefault((repository, became), False)
        self.compressed[word] = layer(became)

    @rule(repository=repositories, lost=st.sets(words))
    def lose_layers(self, repository: str, lost: set[str]) -> None:
        self.portal.call(self.journal.layers_lost, repository, {digest(word) for word in lost})
        for word in lost:
            self.layers.pop((repository, word), None)

    @rule(repository=repositories, config=words, layers=st.sets(words), tag=tags | st.none())
    def put(self, repository: str, config: str, layers: set[str], tag: str | None) -> None:
        image = manifest(config, *sorted(layers))
        self.portal.call(self.journal.image_put, repository, image, tag)
        for word in {config, *layers}:
            self.layers[repository, word] = True
        if (known := self.known.get((repository, tag or ""))) and known.digest != image.digest:
            del self.known[repository, tag or ""]

    @rule(repository=repositories, word=words)
    def carry(self, repository: str, word: str) -> None:
        self.portal.call(self.journal.note_referrers_copied, repository, digest(word))
        self.carried.add((repository, word))

    @rule(repository=repositories, images=st.dictionaries(tags, words), deep=st.booleans())
    def prove(self, repository: str, images: dict[str, str], deep: bool) -> None:
        async def prove() -> None:
            named = {tag: digest(word) for tag, word in images.items()}
            await self.journal.images_proved(repository, named, deep=deep)

        self.portal.call(prove)
        for tag, word in images.items():
            before = self.proved.get((repository, tag))
            self.proved[repository, tag] = (word, deep or before == (word, True))

    @rule(repository=repositories, tag=tags, word=words | st.none())
    def lose_proof(self, repository: str, tag: str, word: str | None) -> None:
        self.portal.call(self.journal.proof_lost, repository, tag, digest(word) if word else None)
        for key, (proved, _) in list(self.proved.items()):
            if key[0] == repository and (key[1] == tag or proved == word):
                del self.proved[key]

    @rule(plan=st.sampled_from(PLANS), fresh=st.booleans())
    def begin_run(self, plan: str, fresh: bool) -> None:
        async def begin():
            return await self.journal.begin_run(plan, fresh=fresh)

        state = self.portal.call(begin)
        last = self.runs.get(plan)
        resumed = last is not None and last.goes_on and not fresh
        self.run = self.runs[plan] = last if resumed and last else RunModel(next(self.numbers))
        assert (state.id, state.resumed, state.finished) == (self.run.id, resumed, len(self.run.finished))
        self.run.goes_on = True

    @precondition(lambda self: self.run)
    @rule(failed=st.integers(0, 1))
    def end_run(self, failed: int) -> None:
        assert self.run
        self.portal.call(self.journal.end_run, failed)
        self.run.goes_on = False
        self.run = None

    @precondition(lambda self: self.run)
    @rule(repository=repositories, tag=tags, word=words, source=st.none() | words)
    def finish_image(self, repository: str, tag: str, word: str, source: str | None) -> None:
        assert self.run
        copy = f"docker://source.test/{tag} -> {repository}:{tag}"
        source_digest = digest(source) if source else None

        async def finish():
            await self.journal.image_finished(copy, source_digest=source_digest, digest=digest(word), outcome="pushed")

        self.portal.call(finish)
        self.run.finished[copy] = FinishedImage(source_digest, digest(word), "pushed")
        self.known[repository, tag] = KnownImage(source_digest, digest(word))

    @precondition(lambda self: self.run)
    @rule(repository=repositories, tag=tags)
    def fail_image(self, repository: str, tag: str) -> None:
        assert self.run
        copy = f"docker://source.test/{tag} -> {repository}:{tag}"
        self.portal.call(self.journal.image_failed, copy, "denied")
        self.run.finished.pop(copy, None)

    @invariant()
    def memory_agrees(self) -> None:
        for repository in REPOSITORIES:
            known = {tag: image for (where, tag), image in self.known.items() if where == repository}
            assert dict(self.journal.known_images(repository)) == known
        assert dict(self.journal.compressed) == self.compressed
        for repository, word in itertools.product(REPOSITORIES, WORDS):
            assert self.journal.referrers_copied(repository, digest(word)) == ((repository, word) in self.carried)
        if self.run:
            assert dict(self.journal.finished) == self.run.finished

    @invariant()
    def the_file_agrees(self) -> None:
        async def look():
            found = {
                (repository, word): await self.journal.open_upload(repository, word)
                for repository, word in itertools.product(REPOSITORIES, WORDS)
            }
            return found, {repository: await self.journal.completed(repository) for repository in REPOSITORIES}

        found, completed = self.portal.call(look)
        assert {key: upload for key, upload in found.items() if upload} == self.uploads
        expected = {(where, str(digest(word)), referenced) for (where, word), referenced in self.layers.items()}
        held = [(row.repository, row.digest, row.referenced) for row in rows(self.path) if isinstance(row, LayerRow)]
        proofs = {
            (row.repository, row.reference): (row.digest, row.deep)
            for row in rows(self.path)
            if isinstance(row, ProofRow)
        }
        assert proofs == {key: (str(digest(word)), deep) for key, (word, deep) in self.proved.items()}
        assert len(held) == len(expected)
        assert set(held) == expected
        for repository in REPOSITORIES:
            digests = {key for where, key, _ in expected if where == repository}
            assert set(map(str, completed[repository])) == digests


JournalMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
test_a_journal_knows_what_its_model_knows = JournalMachine.TestCase
