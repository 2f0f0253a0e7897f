"""``asyncpush doctor --policy``: IAM takes it, the task works with it, and not with less."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import botocore.session
import pytest
from anyio import to_thread

import asyncpush
from asyncpush.doctor.permissions import PERMISSIONS
from asyncpush.emulator import Emulator, FaultConfig
from asyncpush.emulator.faults import parse_fault
from asyncpush.emulator.faults.operations import OPERATIONS
from support.aws import REGION, judge
from support.commands import run_beside, run_here
from support.images import app_layout

HOST = "123456789012.dkr.ecr.eu-west-1.amazonaws.com"
DOCS = Path(asyncpush.__file__).parent / "docs"


def policy(*words: str | Path, **environment: str) -> dict[str, Any]:
    ran = run_here("doctor", *words, "--policy", **environment)
    assert ran.status == 0, ran.err
    return json.loads(ran.out)


def environment_of(emulator: Emulator) -> dict[str, str]:
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    return {"AWS_ENDPOINT_URL_ECR": emulator.endpoint_url, "AWS_REGION": REGION, **keys}


def actions(document: dict[str, Any]) -> set[str]:
    return {action for statement in document["Statement"] for action in statement["Action"]}


def test_a_policy_is_what_iam_accepts() -> None:
    for words in (["--for", "push"], ["--for", "migrate"], ["--for", "verify"], [], ["public.ecr.aws/alias/app"]):
        document = policy(*words)
        assert document.keys() == {"Version", "Statement"}
        assert document["Version"] == "2012-10-17"
        sids = [statement["Sid"] for statement in document["Statement"]]
        assert all(re.fullmatch("[A-Za-z0-9]+", sid) for sid in sids)
        assert len(sids) == len(set(sids)) > 0
        for statement in document["Statement"]:
            assert statement["Effect"] == "Allow"
            assert statement["Action"]
            assert statement["Resource"]


@pytest.mark.parametrize("service", ["ecr", "ecr-public"])
def test_every_action_is_an_operation_of_the_service(service: str) -> None:
    """botocore's model is the judge; IAM names actions after operations."""
    known = set(botocore.session.Session().get_service_model(service).operation_names)

    named = {permission.operation for permission in PERMISSIONS if service in permission.services}
    assert named
    assert named <= known


def test_resources_are_those_of_the_destination() -> None:
    own = "arn:aws:ecr:eu-west-1:123456789012:repository/team/app"
    [push, registry] = policy(f"{HOST}/team/app:1", "--for", "push")["Statement"]
    assert (push["Resource"], registry["Resource"]) == ([own], ["*"])
    assert registry["Action"] == ["ecr:GetAuthorizationToken"]

    china = "210987654321.dkr.ecr.cn-north-1.amazonaws.com.cn/app"
    assert policy(china, "--for", "verify")["Statement"][0]["Resource"] == [
        "arn:aws-cn:ecr:cn-north-1:210987654321:repository/app"
    ]
    assert policy("app", "--for", "verify")["Statement"][0]["Resource"] == ["arn:aws:ecr:*:*:repository/app"]
    assert policy("app", "--for", "verify", "--region", "us-gov-west-1")["Statement"][0]["Resource"] == [
        "arn:aws-us-gov:ecr:us-gov-west-1:*:repository/app"
    ]
    assert "sts:GetServiceBearerToken" in actions(policy("public.ecr.aws/alias/app"))


def test_a_plan_adds_what_it_asks_for(tmp_path: Path) -> None:
    selection = {"tagStatus": "any", "countType": "imageCountMoreThan", "countNumber": 100}
    rules = [{"rulePriority": 1, "selection": selection, "action": {"type": "expire"}}]
    (tmp_path / "lifecycle.json").write_text(json.dumps({"rules": rules}))
    settings = {"create": True, "tags": {"team": "web"}, "lifecycle_policy": "lifecycle.json"}
    images: list[dict[str, Any]] = [{"from": f"quay.io/team/app{number}", "to": f"app{number}"} for number in range(4)]
    images[1]["repository"] = settings
    plan = {"version": 1, "targets": {"eu": {"registry": HOST, "prefix": "mirror"}}, "images": images}
    (tmp_path / "plan.json").write_text(json.dumps(plan))

    document = policy(tmp_path / "plan.json", "--for", "migrate")

    assert {"ecr:TagResource", "ecr:PutLifecyclePolicy", "ecr:CreateRepository"} <= actions(document)
    assert "ecr:SetRepositoryPolicy" not in actions(document)
    prefix = "arn:aws:ecr:eu-west-1:123456789012:repository/mirror"
    assert document["Statement"][0]["Resource"] == [f"{prefix}/app{number}" for number in range(4)]

    images += [{"from": f"quay.io/team/other{number}", "to": f"other{number}"} for number in range(30)]
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    assert policy(tmp_path / "plan.json", "--for", "migrate")["Statement"][0]["Resource"] == [f"{prefix}/*"]


def test_a_plan_that_reads_from_ecr_may_pull_there(tmp_path: Path) -> None:
    source = "210987654321.dkr.ecr.us-east-1.amazonaws.com/base"
    pull, listing = ["ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"], ["ecr:DescribeImages", "ecr:ListImages"]
    for tags, reading in ({"names": ["1.0"]}, [pull]), ({"glob": "1.*"}, [pull, listing]):
        plan = {"version": 1, "images": [{"from": source, "to": "base", "tags": tags}]}
        (tmp_path / "plan.json").write_text(json.dumps(plan))

        read = [each for each in policy(tmp_path / "plan.json")["Statement"] if each["Sid"].startswith("Source")]

        assert [each["Action"] for each in read] == reading
        assert all(each["Resource"] == ["arn:aws:ecr:us-east-1:210987654321:repository/base"] for each in read)


def test_patterns_and_placeholders_are_wildcards_in_a_policy(tmp_path: Path) -> None:
    source = "210987654321.dkr.ecr.us-east-1.amazonaws.com/team/[ab]*-?"
    plan = {"version": 1, "images": [{"from": source, "to": "mirror/{name}"}]}
    (tmp_path / "plan.json").write_text(json.dumps(plan))

    document = policy(tmp_path / "plan.json", "--for", "migrate")

    resources = {each["Sid"]: each["Resource"] for each in document["Statement"]}
    assert resources["Migrate"] == ["arn:aws:ecr:*:*:repository/mirror/*"]
    assert resources["SourceTags"] == ["arn:aws:ecr:us-east-1:210987654321:repository/team/*-?"]
    assert "ecr:DescribeRepositories" in document["Statement"][-1]["Action"], "which lists the source's repositories"


def test_serve_needs_no_policy() -> None:
    ran = run_here("doctor", "--policy", "--for", "serve")

    assert (ran.status, ran.out) == (0, "")
    assert "never calls AWS" in ran.err


def test_the_manual_has_the_policy_of_all_tasks() -> None:
    [block] = re.findall(r"^```json\n(.*?)^```$", (DOCS / "doctor.md").read_text(), flags=re.MULTILINE | re.DOTALL)

    assert block == run_here("doctor", "--policy", AWS_REGION="").out


async def test_repositories_like_their_sources_can_be_made_with_the_policy(emulator: Emulator, tmp_path: Path) -> None:
    client, reader = judge(emulator.endpoint_url), "arn:aws:iam::111122223333:root"
    statement = {"Effect": "Allow", "Principal": {"AWS": reader}, "Action": "ecr:BatchGetImage"}
    text = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    await to_thread.run_sync(
        lambda: client.create_repository(repositoryName="team/app", tags=[{"Key": "team", "Value": "web"}])
    )
    await to_thread.run_sync(lambda: client.set_repository_policy(repositoryName="team/app", policyText=text))
    host = urlsplit(emulator.endpoint_url).netloc
    app_layout().write(tmp_path / "app")
    plan = {
        "version": 1,
        "registries": {host: {"plain_http": True, "credentials": {"ecr": {"region": REGION}}}},
        "images": [{"from": f"{host}/team/*", "to": "mirror/{name}", "repository": {"like": "source"}}],
    }
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    environment = environment_of(emulator)
    pushed = await run_beside("push", tmp_path / "app", "team/app:1", **environment)
    assert pushed.status == 0, pushed.err
    shown = await run_beside("doctor", tmp_path / "plan.json", "--policy", "--for", "migrate")
    allowed = {action.removeprefix("ecr:") for action in actions(json.loads(shown.out))}
    denied = sorted(set(OPERATIONS) - allowed)
    emulator.fault_config = FaultConfig(faults=tuple(parse_fault(f"{each}:access-denied") for each in denied))

    done = await run_beside("migrate", tmp_path / "plan.json", **environment)

    assert (done.status, re.findall("allow|denied", done.err)) == (0, []), done.err
    made = await to_thread.run_sync(lambda: client.get_repository_policy(repositoryName="mirror/team/app"))
    assert reader in made["policyText"]


async def test_the_tasks_work_with_their_policy_and_no_more(emulator: Emulator, tmp_path: Path) -> None:
    """The emulator denies every operation that the policy does not name."""
    client = judge(emulator.endpoint_url)
    await to_thread.run_sync(lambda: client.create_repository(repositoryName="team/app"))
    app_layout().write(tmp_path / "app")
    plan = {"version": 1, "images": [{"from": "oci:app", "to": "mirror/app", "repository": {"create": True}}]}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    environment = environment_of(emulator)
    for task, words in {
        "push": ["push", tmp_path / "app", "team/app:1"],
        "migrate": ["migrate", tmp_path / "plan.json"],
        "verify": ["verify", "team/app:1", "--deep"],
    }.items():
        shown = await run_beside("doctor", "--policy", "--for", task, "--create-repository")
        allowed = {action.removeprefix("ecr:") for action in actions(json.loads(shown.out))}
        denied = sorted(set(OPERATIONS) - allowed)
        emulator.fault_config = FaultConfig(faults=tuple(parse_fault(f"{each}:access-denied") for each in denied))

        done = await run_beside(*words, **environment)
        checked = await run_beside("doctor", "team/app", "--for", task, "--output", "json", **environment)

        assert done.status == 0, done.err
        assert checked.status == 0, checked.out
        sections = json.loads(checked.out)["sections"]
        checks = [check for section in sections for check in section["checks"] if check["name"].startswith("ecr:")]
        assert {check["status"] for check in checks} == {"ok"}, checks

        # What the policy names is missed: all but the two by which doctor finds the repository.
        needed = sorted(allowed - {"BatchCheckLayerAvailability", "DescribeRepositories"})
        emulator.fault_config = FaultConfig(faults=tuple(parse_fault(f"{each}:access-denied") for each in needed))
        words = ["doctor", "team/app", "--for", task, "--output", "json"]
        missed = json.loads((await run_beside(*words, **environment)).out)["sections"]
        denied = [check["name"] for section in missed for check in section["checks"] if "denied" in check["message"]]
        assert {name.removeprefix("ecr:") for name in denied if name.startswith("ecr:")} == set(needed)
