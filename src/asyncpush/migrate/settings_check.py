"""Compares the settings of a plan's repositories with those that the plan states; nothing is changed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import partial

import anyio
from anyio import CapacityLimiter

from asyncpush.errors import AsyncpushError
from asyncpush.migrate.plan.model import Plan, PlanEntry, PlanTarget
from asyncpush.migrate.targets import OpenTarget
from asyncpush.settings import RepositorySettings
from asyncpush.verify import SettingDifference, SettingsVerification, VerificationWatcher

#: Repositories whose settings are read at once.
_READ_AT_ONCE = 16

#: Characters of a policy that a line shows.
_SHOWN = 100

_NAMES = {"policy": "repository policy", "lifecycle_policy": "lifecycle policy", "resource_tags": "resource tags"}

_ACCOUNT = re.compile(r"[0-9]{12}")


async def compare_settings(
    plan: Plan, targets: Mapping[PlanTarget, OpenTarget], watcher: VerificationWatcher
) -> list[SettingsVerification]:
    """Compare the repositories that exist with what *plan* states of them.

    Args:
        plan: the plan.
        targets: its registries, whose repositories were described.
        watcher: hears of each result.

    Returns:
        A result for each repository of which the plan states a setting.
    """
    wanted = {(goal.target, goal.repository): entry for entry in reversed(plan.entries) for goal in entry.goals}
    found: dict[tuple[PlanTarget, str], SettingsVerification] = {}
    at_once = CapacityLimiter(_READ_AT_ONCE)

    async def compare(target: PlanTarget, name: str, entry: PlanEntry) -> None:
        async with at_once:
            result = await _compare_repository(targets[target], name, entry, alone=len(targets) == 1)
        found[target, name] = result
        watcher.found(result)

    async with anyio.create_task_group() as tg:
        for (target, name), entry in wanted.items():
            opened = targets[target]
            # ECR Public has few of the settings, and images can't be verified there.
            is_private = opened.registry.name.service == "ecr"
            if is_private and _states_any(entry) and opened.states.get(name) == "present":
                tg.start_soon(compare, target, name, entry)
    return [found[key] for key in wanted if key in found]


def _states_any(entry: PlanEntry) -> bool:
    return entry.like_source or entry.repository_settings != RepositorySettings()


async def _compare_repository(opened: OpenTarget, name: str, entry: PlanEntry, *, alone: bool) -> SettingsVerification:
    shown = opened.destination(name, None, alone=alone)
    if name not in opened.described:
        return SettingsVerification(shown, unread=(("all settings", "DescribeRepositories is denied"),))
    try:
        expected = await opened.settings_for(entry)
    except AsyncpushError as error:
        return SettingsVerification(shown, unread=(("all settings", str(error)),))
    # A repository like its source has no policy that the source has not.
    members = [member for member in _NAMES if entry.like_source or getattr(expected, member)]
    stored, failed = await opened.registry.admin.stored_settings(opened.described[name], members)
    unread = {_NAMES[member]: str(error) for member, error in failed.items()}
    unread |= _untold(expected, stored)
    differences = [
        *_described(expected, stored),
        *(
            difference
            for member in ("policy", "lifecycle_policy")
            if member in members and member not in failed
            for difference in _policy(_NAMES[member], getattr(expected, member), getattr(stored, member))
        ),
        *(() if "resource_tags" in failed else _tags(expected, stored)),
    ]
    return SettingsVerification(shown, tuple(differences), tuple(unread.items()))


def _untold(expected: RepositorySettings, stored: RepositorySettings) -> Mapping[str, str]:
    """What ECR does not tell in a way that can be compared."""
    untold = {}
    if expected.scan_on_push is not None and stored.scan_on_push is None:
        untold["scanning on push"] = "ECR does not tell"
    key = expected.kms_key
    if key and "alias/" in key and key != stored.kms_key and expected.encryption == stored.encryption:
        untold["encryption key"] = f"the plan names an alias, {key}, and ECR the key"
    return untold


def _described(expected: RepositorySettings, stored: RepositorySettings) -> Iterator[SettingDifference]:
    """The differences in what DescribeRepositories tells."""
    differs = partial(_difference, {True: "on", False: "off"})
    if expected.mutability:
        yield from differs("tag mutability", _mutability(expected), _mutability(stored))
    if expected.scan_on_push is not None and stored.scan_on_push is not None:
        yield from differs("scanning on push", expected.scan_on_push, stored.scan_on_push)
    if expected.encryption and stored.encryption:
        yield from differs("encryption", expected.encryption, stored.encryption)
    key = expected.kms_key
    if key and stored.kms_key and "alias/" not in key and not f"/{stored.kms_key}".endswith(f"/{key}"):
        yield from differs("encryption key", key, stored.kms_key)


def _difference(
    words: Mapping[bool, str], setting: str, expected: str | bool, found: str | bool
) -> Iterator[SettingDifference]:
    if expected != found:
        shown = [words[value] if isinstance(value, bool) else value for value in (expected, found)]
        yield SettingDifference(setting, *shown)


def _mutability(settings: RepositorySettings) -> str:
    excluded = ", ".join(sorted(settings.exclusions))
    return f"{settings.mutability} ({excluded})" if excluded else str(settings.mutability)


def _tags(expected: RepositorySettings, stored: RepositorySettings) -> Iterator[SettingDifference]:
    """The differences in the tags that are expected; a repository may have others."""
    held = dict(stored.resource_tags)
    for key, value in expected.resource_tags:
        if held.get(key) != value:
            yield SettingDifference(f"resource tag {key}", repr(value), repr(held[key]) if key in held else "missing")


def _policy(name: str, expected: str | None, stored: str | None) -> Iterator[SettingDifference]:
    """The first difference of two policies in what they mean, and how many more there are."""
    if expected is None or stored is None:
        if expected != stored:
            yield SettingDifference(name, _shown(expected), "missing" if stored is None else _shown(stored))
        return
    wanted, held = (dict(_leaves(_canonical(_parsed(text)))) for text in (expected, stored))
    paths = [path for path in {**wanted, **held} if wanted.get(path) != held.get(path)]
    if paths:
        path, more = paths[0], f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        yield SettingDifference(f"{name} ({path}{more})", wanted.get(path, "none"), held.get(path, "missing"))


def _parsed(text: str) -> object:
    try:
        parsed: object = json.loads(text)
    except ValueError:
        return text
    return parsed


def _canonical(value: object, member: str = "") -> object:
    """A policy without what has no meaning: the order of lists, lists of one, and how an account is written."""
    match value:
        case {"AWS": "*", **rest} if not rest:
            return "*"
        case dict():
            return {key: _canonical(value[key], key) for key in sorted(value)}
        case list():
            items = [_canonical(item, member) for item in value]
            items.sort(key=lambda item: json.dumps(item, sort_keys=True))
            return items[0] if len(items) == 1 else items
        case str() if member == "AWS" and _ACCOUNT.fullmatch(value):
            return f"arn:aws:iam::{value}:root"
    return value


def _leaves(value: object, path: str = "") -> Iterator[tuple[str, str]]:
    """Each value of a policy, as JSON, by its path."""
    if isinstance(value, dict | list) and value:
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(item, f"{path}.{key}" if path else str(key))
    else:
        yield path or "all of it", json.dumps(value)


def _shown(text: str | None) -> str:
    """A policy on one line."""
    if text is None:
        return "none"
    line = text if isinstance(parsed := _parsed(text), str) else json.dumps(parsed, separators=(",", ":"))
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]}..."
