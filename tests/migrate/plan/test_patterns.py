"""Repositories by pattern in a plan: what is read without a network, and each mistake with its place."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from asyncpush.errors import PlanError
from asyncpush.migrate.plan.load import parse_plan
from asyncpush.migrate.plan.model import Plan
from asyncpush.migrate.plan.wildcards import RepositoryPattern

ECR = "111122223333.dkr.ecr.eu-west-1.amazonaws.com"
TARGETS = {"eu": {"registry": "123456789012.dkr.ecr.eu-west-1.amazonaws.com", "prefix": "mirror"}}


def plan_of(*images: Mapping[str, object], **members: object) -> Plan:
    document = {"version": 1, "targets": TARGETS, "images": list(images), **members}
    return parse_plan(json.dumps(document), Path("plan.json"), {"TEAM": "team"})


def problem_of(image: Mapping[str, object], **members: object) -> str:
    with pytest.raises(PlanError) as caught:
        plan_of(image, **members)
    [problem] = caught.value.problems
    return re.sub(r"^plan\.json:1:[0-9]+: ", "", problem)


@pytest.mark.parametrize(
    ("image", "host", "glob", "goal"),
    [
        ({"from": "r.example.com/*"}, "r.example.com", "*", "mirror/{name}"),
        ({"from": "docker://r.example.com:5000/a?/[ab]*"}, "r.example.com:5000", "a?/[ab]*", "mirror/{name}"),
        ({"from": f"{ECR}/${{TEAM}}/*", "to": "x/{name}"}, ECR, "team/*", "mirror/x/{name}"),
        ({"from": "[::1]:5000/*", "to": "{basename}"}, "[::1]:5000", "*", "mirror/{basename}"),
    ],
)
def test_a_pattern_keeps_its_wildcards_and_placeholders(
    image: Mapping[str, object], host: str, glob: str, goal: str
) -> None:
    [entry] = plan_of({**image, "exclude": "old/*"}).entries
    assert (entry.host, entry.pattern) == (host, RepositoryPattern(glob, ("old/*",)))
    assert [each.repository for each in entry.goals] == [goal]


@pytest.mark.parametrize(
    ("image", "problem"),
    [
        ({"from": "library/*"}, "images[0].from: Docker Hub does not list its repositories"),
        ({"from": "ghcr.io/team/*"}, "images[0].from: GHCR does not list its repositories"),
        ({"from": "public.ecr.aws/x/*"}, "images[0].from: ECR Public does not list its repositories"),
        ({"from": "r.example.com/*:1"}, "images[0].from: 'r.example.com/*:1' names a tag or digest behind a pattern"),
        ({"from": "r.example.com/Team*"}, "images[0].from: 'Team*' matches no repository"),
        ({"from": "r.example.com/*", "to": "all"}, "images[0].to: is 'all' for all repositories that match"),
        ({"from": "r.example.com/*", "to": "a/{nam}"}, "images[0].to: {nam} is not known; use {name} or {basename}"),
        ({"from": "r.example.com/*", "to": "A/{name}"}, "images[0].to: 'mirror/A/{name}' is not a repository name"),
        ({"from": "r.example.com/*", "to": "{name}:1"}, "images[0].to: names one tag, but the source has several"),
        ({"from": "r.example.com/*", "to": {"name": None}}, "images[0].to: is a mapping; put a value with {name}"),
        ({"from": "r.example.com/*", "exclude": []}, "images[0].exclude: is empty"),
        ({"from": "r.example.com/*", "exclude": ["a", "B"]}, "images[0].exclude[1]: 'B' matches no repository"),
        ({"from": "r.example.com/a", "exclude": "b"}, "images[0].exclude: leaves out repositories, but from names a"),
        ({"from": "r.example.com/a", "repository": {"like": "source"}}, "images[0].repository.like: is source, but r"),
        ({"from": "r.example.com/a", "repository": {"like": "it"}}, "images[0].repository.like: is not none or source"),
    ],
)
def test_a_mistake_is_a_problem_with_its_place(image: Mapping[str, object], problem: str) -> None:
    assert problem_of(image).startswith(problem)


def test_public_targets_are_like_no_source() -> None:
    targets = {"public": {"registry": "public.ecr.aws/alias"}}
    problem = problem_of({"from": f"{ECR}/aa", "repository": {"like": "source"}}, targets=targets)
    assert problem == "images[0].repository.like: is source, but ECR Public has other settings than ECR"


def test_defaults_are_like_the_sources_that_are_ecrs() -> None:
    """An entry of another registry keeps its other settings, and a note tells; none overrides the default."""
    images: list[dict[str, Any]] = [{"from": f"{ECR}/a"}, {"from": "quay.io/b/c"}, {"from": f"{ECR}/d"}]
    images[2]["repository"] = {"like": "none"}
    plan = plan_of(*images, defaults={"repository": {"like": "source", "scan_on_push": True}})
    assert [(entry.like_source, entry.create) for entry in plan.entries] == [(True, True), *2 * [(False, False)]]
    assert "defaults.repository.like: no effect on images[1], since quay.io is not a registry of ECR" in plan.notices


def test_a_key_needs_no_encryption_beside_like() -> None:
    [entry] = plan_of({"from": f"{ECR}/a", "repository": {"like": "source", "kms_key": "alias/x"}}).entries
    assert entry.repository_settings.kms_key == "alias/x"
    problem = problem_of({"from": f"{ECR}/a", "repository": {"like": "source", "encryption": "AES256", "kms_key": "k"}})
    assert problem.startswith("images[0].repository.kms_key: needs an encryption")


def test_placeholders_name_single_sources_too() -> None:
    images = [{"from": "quay.io/a/b", "to": "{basename}/{name}"}, {"from": "nginx:1", "to": "hub/{name}"}]
    plan = plan_of(*images)
    goals = [(goal.repository, goal.tag) for entry in plan.entries for goal in entry.goals]
    assert goals == [("mirror/b/a/b", None), ("mirror/hub/nginx", "1")]


def test_a_pattern_chooses_across_slashes_and_tells_what_is_idle() -> None:
    names = ["team/b/c", "team/a", "team", "a/team/x", "team/old-1"]
    choice = RepositoryPattern("team/*", ("*/old-?", "x*")).choose(names)
    assert choice.taken == ("team/a", "team/b/c")
    assert choice.excluded == (("team/old-1", "*/old-?"),)
    assert choice.idle == ("x*",)


def test_a_list_takes_placeholders_and_no_patterns() -> None:
    """What runs in a cluster, in the forms that its pods have."""
    digest = f"sha256:{'a' * 64}"
    lines = ["nginx", "quay.io/a/b:1", f"registry.k8s.io/pause:3.9@{digest}", f"ghcr.io/c/d@{digest}"]
    plan = parse_plan("".join(f"{line} k8s/{{name}}\n" for line in lines), None, {})
    found = [(entry.reference, goal.repository, goal.tag) for entry in plan.entries for goal in entry.goals]
    assert found == [
        ("latest", "k8s/nginx", "latest"),
        ("1", "k8s/a/b", "1"),
        (digest, "k8s/pause", "3.9"),
        (digest, "k8s/c/d", None),
    ]
    for text, words in {
        "r.example.com/* x": "'r.example.com/*' is a pattern",
        "nginx x/{tag}": "{tag} is not known",
        f"{__file__} x/{{name}}": "needs a source in a registry",
    }.items():
        with pytest.raises(PlanError, match=r"^standard input:1: ") as caught:
            parse_plan(text, None, {})
        assert words in str(caught.value)
