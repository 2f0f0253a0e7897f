"""``asyncpush plan batch``: AWS Batch and Kubernetes accept what it prints, and it allows no more than it needs."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import botocore.session
import pytest
import yaml
from botocore.validate import ParamValidator

from asyncpush.migrate.shard import Shard, parse_shard
from support.commands import Ran, run_here

PLAN = """\
version: 1
targets:
  eu: {registry: 123456789012.dkr.ecr.eu-west-1.amazonaws.com, prefix: mirror}
defaults: {repository: {create: true}}
registries:
  quay.io: {credentials: {username: "${QUAY_USER}", password: "${QUAY_PASSWORD}"}}
images:
  - from: docker.io/library/nginx
  - from: 111122223333.dkr.ecr.us-east-1.amazonaws.com/team/app
"""
VARIABLES = {"QUAY_USER": "me", "QUAY_PASSWORD": "secret-word"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "My plan.yaml"
    file.write_text(PLAN)
    return file


def printed(path: Path, *words: str) -> Ran:
    return run_here("plan", "batch", path, "--shards", "64", *words, **VARIABLES)


def run_script(text: str, folder: Path, **environment: str) -> list[list[str]]:
    """Run a script with programs that only note what they are called with; the calls."""
    programs = folder / "programs"
    programs.mkdir()
    for name in ("aws", "docker"):
        program = programs / name
        program.write_text(f'#!/bin/sh\nprintf "%s\\037" {name} "$@" >> calls; echo >> calls\n')
        program.chmod(0o755)
    variables = {"PATH": f"{programs}:{os.environ['PATH']}", "ACCOUNT": "123456789012", "REGION": "eu-west-1"}
    done = subprocess.run(
        ["bash", "-c", text],
        cwd=folder,
        env={**variables, "QUEUE": "my-queue", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (folder / "said").write_text(done.stdout)
    return [line.strip("\037").split("\037") for line in (folder / "calls").read_text().splitlines()]


def validated(operation: str, document: dict[str, Any], service: str = "batch") -> dict[str, Any]:
    """*document*, which botocore accepts as the parameters of an operation."""
    shape = botocore.session.Session().get_service_model(service).operation_model(operation).input_shape
    report = ParamValidator().validate(document, shape)
    assert not report.has_errors(), report.generate_report()
    return document


def test_the_script_makes_what_aws_batch_accepts(path: Path, tmp_path: Path) -> None:
    done = printed(path, "--at-once", "16", "--journals", "s3://bucket/run/7")
    assert done.status == 0, done.err
    assert "secret-word" not in done.out

    calls = run_script(done.out, tmp_path)

    assert [call[:3] for call in calls] == [
        ["docker", "build", "-t"],
        ["docker", "push", "123456789012.dkr.ecr.eu-west-1.amazonaws.com/asyncpush-my-plan:latest"],
        ["aws", "iam", "create-role"],
        ["aws", "iam", "put-role-policy"],
        ["aws", "batch", "register-job-definition"],
        ["aws", "batch", "submit-job"],
    ]
    definition = validated("RegisterJobDefinition", json.loads((tmp_path / "job-definition.json").read_text()))
    job = validated("SubmitJob", json.loads((tmp_path / "job.json").read_text()))
    assert job == {
        "jobName": "asyncpush-my-plan",
        "jobQueue": "my-queue",
        "jobDefinition": definition["jobDefinitionName"],
        "arrayProperties": {"size": 64},
    }
    container = definition["containerProperties"]
    assert container["jobRoleArn"] == "arn:aws:iam::123456789012:role/asyncpush-my-plan"
    assert [secret["name"] for secret in container["secrets"]] == ["QUAY_PASSWORD", "QUAY_USER"]
    command = container["command"]
    assert command[:3] == ["asyncpush", "migrate", "/plan/My plan.yaml"]
    assert command[command.index("--journal") + 1] == "s3://bucket/run/7/{shard}.journal"
    assert command[command.index("--share") + 1] == "1/16"
    array = {"AWS_BATCH_JOB_ARRAY_INDEX": "63", "AWS_BATCH_JOB_ARRAY_SIZE": "64"}
    assert parse_shard(command[command.index("--shard") + 1], array) == Shard(63, 64)
    assert 'COPY ["My plan.yaml", "/plan/"]' in (tmp_path / "Dockerfile.asyncpush").read_text()
    assert "asyncpush journal merge s3://bucket/run/7/ --into plan.journal" in (tmp_path / "said").read_text()


def test_the_command_of_a_task_is_one_that_asyncpush_takes(path: Path, tmp_path: Path) -> None:
    """Of the printed command, all but the place of the plan: nothing is sent, since its last option is wrong."""
    run_script(printed(path, "--journals", "s3://bucket/run").out, tmp_path)
    command = json.loads((tmp_path / "job-definition.json").read_text())["containerProperties"]["command"]
    words = [str(path), *command[3:], "--max-layers", "0"]
    array = {"AWS_BATCH_JOB_ARRAY_INDEX": "0", "AWS_BATCH_JOB_ARRAY_SIZE": "64"}
    done = run_here("migrate", *words, **VARIABLES, **array)
    assert done.err == "asyncpush: error: --max-layers is 0; give 1 or more\n"


def test_the_policy_allows_what_a_task_needs_and_no_more(path: Path, tmp_path: Path) -> None:
    path.write_text(
        f"{PLAN}  - {{from: 's3://archives/a.tar:1', to: a/b}}\n  - {{from: 's3://archives/b.tar', to: a/c}}\n"
    )
    run_script(printed(path).out, tmp_path, BUCKET="my-bucket")
    policy = json.loads((tmp_path / "policy.json").read_text())
    allowed = {statement["Sid"]: statement for statement in policy["Statement"]}

    mirror = "arn:aws:ecr:eu-west-1:123456789012:repository/mirror"
    names = ("a/b", "a/c", "nginx", "team/app")
    assert allowed["Migrate"]["Resource"] == [f"{mirror}/{name}" for name in names]
    assert allowed["SourceTags"]["Resource"] == ["arn:aws:ecr:us-east-1:111122223333:repository/team/app"]
    assert allowed["Archives"]["Resource"] == ["arn:aws:s3:::archives/a.tar*", "arn:aws:s3:::archives/b.tar"]
    assert allowed["Journals"]["Resource"] == ["arn:aws:s3:::my-bucket/asyncpush-my-plan/*"]
    assert allowed["NewJournals"]["Resource"] == ["arn:aws:s3:::my-bucket"]
    assert "ecr:CreateRepository" in allowed["Migrate"]["Action"]
    model = botocore.session.Session().get_service_model("ecr")
    operations = set(model.operation_names) | {"DescribeRepositoryCreationTemplates"}
    for statement in policy["Statement"]:
        for action in statement["Action"]:
            service, _, operation = action.partition(":")
            assert service == "s3" or operation in operations, action
            assert not operation.startswith("Delete")
    # A role's inline policies have 10,240 characters, without white space.
    assert len(json.dumps(policy, separators=(",", ":"))) < 10_240


def test_a_plan_that_creates_nothing_may_create_nothing_in_its_partition(path: Path, tmp_path: Path) -> None:
    isolated = PLAN.replace("eu-west-1.amazonaws.com", "us-isob-east-1.sc2s.sgov.gov")
    path.write_text(isolated.replace("create: true", "create: false"))
    run_script(printed(path).out, tmp_path, BUCKET="my-bucket")
    policy = (tmp_path / "policy.json").read_text()
    assert "CreateRepository" not in policy
    assert "arn:aws-iso-b:ecr:us-isob-east-1:123456789012:repository/mirror/nginx" in policy


def test_the_policy_for_ecr_public_has_its_actions(path: Path, tmp_path: Path) -> None:
    path.write_text(PLAN.replace("123456789012.dkr.ecr.eu-west-1.amazonaws.com", "public.ecr.aws/alias"))
    run_script(printed(path).out, tmp_path, BUCKET="my-bucket")
    statements = json.loads((tmp_path / "policy.json").read_text())["Statement"]
    [push] = [each for each in statements if "ecr-public:PutImage" in each["Action"]]
    assert {action.partition(":")[0] for action in push["Action"]} == {"ecr-public"}
    assert push["Resource"][0] == "arn:aws:ecr-public::123456789012:repository/mirror/nginx"
    [registry] = [each for each in statements if "sts:GetServiceBearerToken" in each["Action"]]
    assert "ecr-public:GetAuthorizationToken" in registry["Action"]


def test_the_yaml_is_what_kubernetes_accepts(path: Path, need: Callable[[str], str]) -> None:
    need("kubernetes_validate")
    import kubernetes_validate

    words = ("--at-once", "8", "--journals", "s3://bucket/run", "--image", "registry.test/asyncpush:1")
    done = printed(path, "--engine", "kubernetes", *words)
    assert done.status == 0, done.err
    documents = list(yaml.safe_load_all(done.out))
    for document in documents:
        kubernetes_validate.validate(document, "1.33", strict=True)
    configuration, job = documents
    assert configuration["data"] == {"My plan.yaml": PLAN}
    spec = job["spec"]
    assert (spec["completions"], spec["parallelism"], spec["completionMode"]) == (64, 8, "Indexed")
    pod = spec["template"]["spec"]
    [container] = pod["containers"]
    command = container["command"]
    assert parse_shard(command[command.index("--shard") + 1], {"JOB_COMPLETION_INDEX": "63"}) == Shard(63, 64)
    assert command[command.index("--share") + 1] == "1/8"
    names = {
        rule["onExitCodes"]["containerName"] for rule in spec["podFailurePolicy"]["rules"] if "onExitCodes" in rule
    }
    assert names == {container["name"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert pod["volumes"][0]["configMap"]["name"] == configuration["metadata"]["name"]
    assert "secret-word" not in done.out


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--shards", "1"), "--shards is 1; batch takes 2 to 10000"),
        (("--shards", "10001"), "--shards is 10001"),
        (("--shards", "0", "--engine", "kubernetes"), "--shards is 0"),
        (("--shards", "8", "--at-once", "9"), "--at-once is 9; give 1 to the number of shards"),
        (("--shards", "8", "--journals", "/tmp/journals"), "is not a place; write s3://BUCKET/PREFIX"),
        (("--shards", "8", "--journals", "s3://b/$(id)"), "is not a place"),
        (("--shards", "8", "--image", "x; id"), "is not an image"),
        (("--shards", "8", "--name", "My_job"), "is not a name"),
        (("--shards", "8", "--engine", "ray"), "--engine"),
    ],
)
def test_what_no_engine_takes_is_refused(path: Path, words: tuple[str, ...], complaint: str) -> None:
    done = run_here("plan", "batch", path, *words, **VARIABLES)
    assert (done.status, done.out) == (2, "")
    assert complaint in done.err


@pytest.mark.parametrize("source", ["./app.tar", "docker-daemon:app:1"])
def test_sources_of_this_machine_are_refused(source: str, tmp_path: Path) -> None:
    (tmp_path / "app.tar").write_bytes(b"")
    path = tmp_path / "plan.yaml"
    images = f"images: [{{from: '{source}', to: team/app}}]"
    path.write_text(f"version: 1\ntargets: {{eu: {{region: eu-west-1}}}}\n{images}\n")
    done = run_here("plan", "batch", path, "--shards", "8")
    assert done.status == 2
    assert f"images[0]: {source} is on this machine, and not where the job runs" in done.err


def test_a_password_in_the_plan_gets_into_no_configmap(path: Path) -> None:
    path.write_text(PLAN.replace("${QUAY_PASSWORD}", "a-literal-password"))
    done = printed(path, "--engine", "kubernetes")
    assert (done.status, done.out) == (2, "")
    assert "contains a password, which a ConfigMap must not; write a variable" in done.err
    assert "a-literal-password" not in done.err
