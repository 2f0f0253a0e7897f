"""Whether what a plan asks for is in ECR: every image, signature, attestation and SBOM, whole, as the source has it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack

import anyio

from asyncpush.api import open_logins
from asyncpush.engine.context import PushContext
from asyncpush.engine.diff import referrer_nodes
from asyncpush.engine.referrers import subjects_of
from asyncpush.errors import AsyncpushError, only_cause
from asyncpush.events import Emit, Listener, Notice, ignore
from asyncpush.migrate.layer_distribution import LayerDistributor
from asyncpush.migrate.ledger import Context, Options
from asyncpush.migrate.plan.model import Plan, PlanEntry
from asyncpush.migrate.referrers import Referrers
from asyncpush.migrate.report import Copy
from asyncpush.migrate.source_listing import SourceListing
from asyncpush.migrate.targets import OpenTarget, open_targets, prepare
from asyncpush.model import Digest
from asyncpush.protocols import ImageNode, IndexNode, ReferrerSource
from asyncpush.reference import Destination
from asyncpush.results import Results
from asyncpush.settings import RetryPolicy, Settings
from asyncpush.sources.registry import open_pool
from asyncpush.verify import Verification, VerificationFailure, VerificationTarget, verify_all


async def verify_plan(
    plan: Plan, *, settings: Settings | None = None, emit: Emit = ignore, deep: bool = False
) -> Results[Verification | VerificationFailure]:
    """Compare what *plan* asks for with what ECR has; nothing is changed.

    Args:
        plan: what was to go where.
        settings: the limits.
        emit: hears of retries.
        deep: read every blob and compare its digest, instead of asking whether it is there.

    Returns:
        What was found of each image, and of what refers to it; a failure where source or target could not be asked.
    """
    async with AsyncExitStack() as held:
        heard = Listener(emit)
        push = PushContext.of(settings or Settings(), heard)
        targets = await held.enter_async_context(open_targets(plan, push))
        logins = await held.enter_async_context(open_logins(push.settings, heard))
        remotes = await held.enter_async_context(
            open_pool(plan.source_registries, logins=logins, emit=heard, retry=RetryPolicy.of(push.settings))
        )
        context = Context(
            options=Options(dry=True),
            push=push,
            exchange=LayerDistributor(push),
            targets=targets,
            remotes=remotes,
            journal=None,
        )
        await prepare(plan, targets, dry=True)
        expected = _Expected(context, held)
        with only_cause():
            async with anyio.create_task_group() as tg:
                for entry in plan.entries:
                    tg.start_soon(expected.entry, entry)
        for untaken in context.nothing_taken.values():
            context.emit(Notice(str(untaken)))
        failures = [
            VerificationFailure(result.copy.destination, result.error)
            for result in context.results.values()
            if result.error is not None
        ]
        return Results(failures + await _verified(targets.values(), expected.wanted, deep=deep))


async def _verified(
    targets: Iterable[OpenTarget], wanted: Sequence[tuple[Copy, VerificationTarget]], *, deep: bool
) -> list[Verification | VerificationFailure]:
    results: list[Verification | VerificationFailure] = []
    by_target: defaultdict[object, list[VerificationTarget]] = defaultdict(list)
    for copy, target in wanted:
        by_target[copy.goal.target].append(target)
    for opened in targets:
        each = list(dict.fromkeys(by_target[opened.target]))
        if each:
            results += await verify_all(opened.registry, each, deep=deep)
    return results


class _Expected:
    """What the plan's entries should have brought.

    Attributes:
        wanted: each image and referrer, and the digest that it has at the source, where that is known.
    """

    def __init__(self, context: Context, held: AsyncExitStack) -> None:
        self.wanted: list[tuple[Copy, VerificationTarget]] = []
        self._context = context
        self._catalog = SourceListing(context, held)
        self._referrers = Referrers(context)

    async def entry(self, entry: PlanEntry) -> None:
        """Find out what *entry* should have brought; what can't be learnt is a failure of its copies."""
        try:
            copies = await self._catalog.copies(entry)
            if entry.kind == "local":
                loaded = await self._catalog.load_archive(entry, copies)
            else:
                descriptors = await self._catalog.resolve(entry, copies)
                found = [copy for copy in copies if copy.reference in descriptors]
                loaded = await self._catalog.load(entry, found, descriptors)
        except AsyncpushError as error:
            for goal in entry.goals:
                self._context.failed(self._catalog.copy(entry, goal, ""), error)
            return
        async with anyio.create_task_group() as tg:
            for copy, image in loaded:
                self._want(copy, copy.tag, image.root)
                for companion in referrer_nodes(image.root):
                    if companion.manifest:
                        self._want(copy, None, companion)
                if entry.referrers and (entry.kind == "registry" or image.referrers):
                    for subject in subjects_of(image.root):
                        tg.start_soon(self._referrers_of, copy, subject, image.referrers, 1)

    async def _referrers_of(self, copy: Copy, subject: Digest, source: ReferrerSource | None, depth: int) -> None:
        found = await self._referrers.of(copy, subject, source, depth)
        for unread in found.unread:
            self._context.failed(copy, unread.error)
        for referrer in found.referrers:
            if referrer.root.manifest:
                self._want(copy, referrer.tag, referrer.root)
                await self._referrers_of(copy, referrer.root.manifest.digest, source, depth + 1)

    def _want(self, copy: Copy, tag: str | None, root: ImageNode | IndexNode) -> None:
        to = Destination(self._context.targets[copy.goal.target].registry.name, copy.goal.repository, tag)
        if isinstance(root, ImageNode) and root.manifest is None:
            # Its layers are compressed on the way: the config says which image it is, by the layers' diff ids.
            config = root.config.descriptor
            types = tuple(layer.media_type for layer in root.layers)
            target = VerificationTarget(
                to, config=config.digest if config else None, layers=len(types), layer_types=types
            )
        else:
            target = VerificationTarget(to, root.manifest.digest if root.manifest else None)
        self.wanted.append((copy, target))
