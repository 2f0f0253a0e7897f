"""Plain lists: lines of SOURCE DESTINATION, as everybody's shell loop has them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncpush.errors import AsyncpushError, PlanError
from asyncpush.migrate.plan.load import parse_plan
from asyncpush.migrate.plan.model import Plan

EU = "123456789012.dkr.ecr.eu-west-1.amazonaws.com"
HEX = "ab" * 32


def plan_of(text: str) -> Plan:
    return parse_plan(text, None, {})


def test_each_line_is_an_image() -> None:
    plan = plan_of(
        "# a comment\n\n"
        f"docker://nginx:1.25 {EU}/mirror/nginx\n"
        f"quay.io/a/b\t{EU}/a/b:stable   # another\r\n"
        "ghcr.io/x/app:1,team/app\n"
        f"  ghcr.io/x/app@sha256:{HEX} , public.ecr.aws/alias/app:2\n"
    )

    assert [entry.place for entry in plan.entries] == ["line 3", "line 4", "line 5", "line 6"]
    assert [entry.location for entry in plan.entries] == [
        "docker://docker.io/library/nginx:1.25",
        "docker://quay.io/a/b:latest",
        "docker://ghcr.io/x/app:1",
        f"docker://ghcr.io/x/app@sha256:{HEX}",
    ]
    assert [entry.reference for entry in plan.entries] == ["1.25", "latest", "1", f"sha256:{HEX}"]
    assert not any(entry.tags.needs_listing for entry in plan.entries)
    goals = [goal for entry in plan.entries for goal in entry.goals]
    assert [(goal.target.registry.host, goal.repository, goal.tag) for goal in goals] == [
        (EU, "mirror/nginx", "1.25"),
        (EU, "a/b", "stable"),
        ("", "team/app", "1"),
        ("public.ecr.aws", "app", "2"),
    ]
    assert [target.name for target in plan.targets] == [EU, "own", "public.ecr.aws/alias"]


def test_archives_and_layouts_are_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "app.tar").touch()
    (tmp_path / "layout").mkdir()
    plan = plan_of(
        "app.tar team/app:1\noci:layout:1.0 team/b\ndocker-archive:app.tar:x:1 team/c:1\ns3://b/a:b.tar team/d\n"
    )

    assert [entry.kind for entry in plan.entries] == ["local"] * 4
    archives = ["app.tar", "oci:layout:1.0", "docker-archive:app.tar:x:1", "s3://b/a:b.tar"]
    assert [entry.location for entry in plan.entries] == archives
    assert [entry.goals[0].tag for entry in plan.entries] == ["1", None, "1", None]


def test_every_bad_line_is_told_with_its_number() -> None:
    with pytest.raises(PlanError) as caught:
        plan_of(
            "a/b\na/b c/d e/f\na/b c/d:\nA:x c/d\nno.tar c/d\na/b quay.io/x/y\nnginx@x c/d\n"
            "nginx c/d\nnginx:1 c/d:latest\n"
        )

    assert [problem.partition(": ")[0] for problem in caught.value.problems] == [
        f"standard input:{number}" for number in (1, 2, 3, 4, 5, 6, 7, 9)
    ]
    assert "c/d:latest comes from nginx:1, but in line 8 from nginx" in str(caught.value)


@pytest.mark.parametrize(
    "line", ["docker://nginx team/nginx", "oci:. team/x", "nginx:1 team/nginx", "a-b/c,team/x", "localhost:5000/x t/x"]
)
def test_a_list_is_told_from_a_document(line: str) -> None:
    assert plan_of(f"# x\n\n{line}\n").entries[0].place == "line 3"


@pytest.mark.parametrize("head", ["version: 1", "'version': 1", "---\nversion: 1", "%YAML 1.1\n---\nversion: 1"])
def test_a_document_is_told_from_a_list(head: str) -> None:
    assert plan_of(f"# x\n\n{head}\nimages:\n- from: a/b\n").entries[0].place == "images[0]"


@given(st.text(st.sampled_from("ab:/@.,# \n-1A"), max_size=60))
def test_any_lines_are_a_plan_or_an_error(text: str) -> None:
    try:
        plan = plan_of(text)
    except AsyncpushError:
        return
    assert all(entry.goals for entry in plan.entries)
