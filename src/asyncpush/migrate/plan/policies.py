"""What is wrong with the policies of a repository, member by member, before ECR is asked to take one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias, TypeGuard

from asyncpush.migrate.plan.problems import member

#: A member's place in a policy, and what is wrong with it.
Fault: TypeAlias = tuple[str, str]

#: The shortest and the longest text that SetRepositoryPolicy and PutLifecyclePolicy take (ECR's service model).
LENGTHS = {"policy": (0, 10_240), "lifecycle_policy": (100, 30_720)}

#: Rules of a lifecycle policy (ECR's quotas page), and their tagStatus.
_MAX_RULES = 50
_TAG_STATUS = ("tagged", "untagged", "any")
_TAG_LISTS = ("tagPatternList", "tagPrefixList")


def faults_of(name: str, text: str, document: dict[str, Any]) -> Iterator[Fault]:
    """What is wrong with a ``policy`` or ``lifecycle_policy``; with all of it, where the place is empty.

    Only what ECR's user guide demands of every rule: what it allows beside that has grown before, and will again.
    """
    least, most = LENGTHS[name]
    if len(text) > most:
        yield "", f"has {len(text)} characters; ECR takes {most}"
        return
    if len(text) < least:
        yield "", f"has {len(text)} characters; ECR takes {least} or more"
    yield from _lifecycle_faults(document) if name == "lifecycle_policy" else _policy_faults(document)


def _policy_faults(document: dict[str, Any]) -> Iterator[Fault]:
    statements = document.get("Statement")
    if not isinstance(statements, (list, dict)) or not statements:
        yield "Statement", "is missing: a policy has one statement or more"


def _lifecycle_faults(document: dict[str, Any]) -> Iterator[Fault]:
    rules = document.get("rules")
    if not isinstance(rules, list) or not rules:
        yield "rules", "is no list of rules" if rules else "is missing: a lifecycle policy has one rule or more"
        return
    if len(rules) > _MAX_RULES:
        yield "rules", f"has {len(rules)} rules; ECR takes {_MAX_RULES}"
    seen: dict[int, str] = {}
    for at, rule in enumerate(rules):
        place = f"rules[{at}]"
        if not isinstance(rule, dict):
            yield place, "is no mapping"
            continue
        priority = rule.get("rulePriority")
        if not _is_count(priority):
            yield member(place, "rulePriority"), _wanted(priority, "a number from 1 on")
        elif (other := seen.setdefault(priority, place)) != place:
            yield member(place, "rulePriority"), f"is {priority}, as that of {other} is"
        yield from _selection_faults(rule.get("selection"), member(place, "selection"))
        yield from _action_faults(rule.get("action"), member(place, "action"))
    yield from _last_faults(rules)


def _selection_faults(selection: object, place: str) -> Iterator[Fault]:
    if not isinstance(selection, dict):
        yield place, _wanted(selection, "a mapping")
        return
    status = selection.get("tagStatus")
    if status not in _TAG_STATUS:
        yield member(place, "tagStatus"), _wanted(status, " or ".join(_TAG_STATUS))
    given = [name for name in _TAG_LISTS if name in selection]
    if status == "tagged" and not given:
        yield member(place, "tagPatternList"), "is missing: tagged needs it, or tagPrefixList"
    for name in given:
        if status in ("untagged", "any"):
            yield member(place, name), f"is for tagged, not for {status}"
        elif not _is_texts(selection[name]):
            yield member(place, name), "is no list of texts"
    kind = selection.get("countType")
    if not isinstance(kind, str) or not kind:
        yield member(place, "countType"), _wanted(kind, "such as imageCountMoreThan or sinceImagePushed")
    elif kind.startswith("since") and "countUnit" not in selection:
        yield member(place, "countUnit"), f"is missing: {kind} needs it (days)"
    if not _is_count(number := selection.get("countNumber")):
        yield member(place, "countNumber"), _wanted(number, "a number from 1 on")


def _action_faults(action: object, place: str) -> Iterator[Fault]:
    if not isinstance(action, dict):
        yield place, _wanted(action, "a mapping")
    elif not isinstance(kind := action.get("type"), str) or not kind:
        yield member(place, "type"), _wanted(kind, "such as expire")


def _last_faults(rules: list[Any]) -> Iterator[Fault]:
    """A rule for any image must come last."""
    priorities: dict[int, int] = {
        at: rule["rulePriority"]
        for at, rule in enumerate(rules)
        if isinstance(rule, dict) and _is_count(rule.get("rulePriority"))
    }
    for at, priority in priorities.items():
        selection = rules[at].get("selection")
        if isinstance(selection, dict) and selection.get("tagStatus") == "any" and priority < max(priorities.values()):
            yield f"rules[{at}].rulePriority", f"is {priority}: a rule for any image needs the highest of all"


def _wanted(value: object, wanted: str) -> str:
    return f"is missing: {wanted}" if value is None else f"is {str(value)[:100]!r}: wanted is {wanted}"


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, str) and each for each in value)
