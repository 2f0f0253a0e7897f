"""A whole registry by one pattern: what is chosen, what travels with the repositories, and what stays behind."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from anyio import to_thread

from asyncpush.emulator import Emulator, KnownCredentials
from asyncpush.emulator.faults import FaultConfig, parse_fault
from support.aws import call_new, judge_in
from support.commands import Ran, run_beside
from support.emulator_client import Ecr, digest_of, index_manifest
from support.migrations import Bench, keys, layer, outcomes, reasons

SOURCE, TARGET = "eu-west-1", "us-east-1"
KEY = f"arn:aws:kms:{SOURCE}:000000000000:key/11112222-3333-4444-5555-666677778888"
SELECTION = {"tagStatus": "untagged", "countType": "sinceImagePushed", "countUnit": "days", "countNumber": 14}
LIFECYCLE = json.dumps({"rules": [{"rulePriority": 1, "selection": SELECTION, "action": {"type": "expire"}}]})
STATEMENT = {"Sid": "pull", "Effect": "Allow", "Principal": "*", "Action": ["ecr:BatchGetImage"]}
POLICY = json.dumps({"Version": "2012-10-17", "Statement": [STATEMENT]})


@dataclass
class Registries:
    """An emulator to read from, another one to write to, and a folder for the plan."""

    source: Emulator
    target: Emulator
    folder: Path

    async def create(self, name: str, *tags: str, **members: Any) -> None:
        """Create a repository at the source, with an image of one blob under each of *tags*."""
        ecr = Ecr(self.source.endpoint_url, region=SOURCE)
        await ecr.call("create_repository", repositoryName=name, **members)
        for tag in tags:
            config = json.dumps({"architecture": "amd64", "os": "linux", "config": {}, "at": f"{name}:{tag}"}).encode()
            await ecr.push_image(name, tag, config, config)

    async def archive(self, repository: str, **image: str) -> None:
        """Archive an image of the source."""
        members = {"repositoryName": repository, "imageId": image, "targetStorageClass": "ARCHIVE"}
        ask = partial(call_new, self.source.endpoint_url, "UpdateImageStorageClass", SOURCE, **members)
        assert (await to_thread.run_sync(ask))["imageStatus"] == "ARCHIVED"

    def plan(self, *images: Mapping[str, object], region: str = TARGET, **members: object) -> Path:
        """Write a plan for *images* of the source."""
        host, aws = f"{self.source.host}:{self.source.port}", {"endpoint_url": self.source.endpoint_url}
        document = {
            "version": 1,
            "registries": {host: {"plain_http": True, "credentials": {"ecr": {**aws, "region": SOURCE}}}},
            "targets": {"us": {"region": region, "endpoint_url": self.target.endpoint_url}},
            "defaults": {"repository": {"like": "source"}},
            "images": [{**image, "from": f"{host}/{image['from']}"} for image in images],
            **members,
        }
        path = self.folder / "plan.json"
        path.write_text(json.dumps(document))
        return path

    async def run(self, *words: str | Path) -> Ran:
        """Run a command, without progress."""
        return await run_beside(*words, *(["--progress", "none"] if words[0] != "plan" else []))

    async def settings(self, emulator: Emulator, region: str) -> dict[str, dict[str, object]]:
        """All that boto3 sees of each repository, but for its date and address."""
        return await to_thread.run_sync(_settings, judge_in(emulator.endpoint_url, region))

    async def names(self) -> set[str]:
        """The repositories of the target."""
        return set(await self.settings(self.target, TARGET))


def _settings(client: Any) -> dict[str, dict[str, object]]:
    def policy(get: Any, member: str, missing: Any) -> object:
        try:
            return json.loads(get()[member])
        except missing:
            return None

    found = {}
    for page in client.get_paginator("describe_repositories").paginate():
        for repository in page["repositories"]:
            name = repository["repositoryName"]
            named, errors = {"repositoryName": name}, client.exceptions
            lifecycle = partial(client.get_lifecycle_policy, **named)
            access = partial(client.get_repository_policy, **named)
            listed = client.list_tags_for_resource(resourceArn=repository["repositoryArn"])["tags"]
            found[name] = {
                "mutability": repository["imageTagMutability"],
                "exclusions": repository.get("imageTagMutabilityExclusionFilters"),
                "scanning": repository["imageScanningConfiguration"],
                "encryption": repository["encryptionConfiguration"],
                "lifecycle": policy(lifecycle, "lifecyclePolicyText", errors.LifecyclePolicyNotFoundException),
                "policy": policy(access, "policyText", errors.RepositoryPolicyNotFoundException),
                "tags": sorted((tag["Key"], tag["Value"]) for tag in listed),
                "images": sorted(
                    (image["imageDigest"], image["imageTag"]) for image in client.list_images(**named)["imageIds"]
                ),
            }
    return found


@pytest.fixture
async def registries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Registries]:
    keys(monkeypatch)
    async with (
        Emulator(tmp_path / "source", fsync=False) as source,
        Emulator(tmp_path / "target", fsync=False) as target,
    ):
        yield Registries(source, target, tmp_path)


async def test_a_registry_goes_by_one_pattern_with_their_settings(registries: Registries) -> None:
    """Shown, rehearsed, copied and verified by the command line; boto3 finds the same settings on both sides."""
    ecr = Ecr(registries.source.endpoint_url, region=SOURCE)
    wildcard = {"filterType": "WILDCARD", "filter": "dev-*"}
    kinds: list[dict[str, Any]] = [
        {},
        {"imageTagMutability": "IMMUTABLE", "imageScanningConfiguration": {"scanOnPush": True}},
        {
            "imageTagMutability": "IMMUTABLE_WITH_EXCLUSION",
            "imageTagMutabilityExclusionFilters": [{**wildcard, "filter": "latest*"}, wildcard],
            "tags": [{"Key": "owner", "Value": "platform"}, {"Key": "empty", "Value": ""}],
        },
        {"encryptionConfiguration": {"encryptionType": "KMS"}},
    ]
    for number in range(12):
        name = f"{('team', 'team/sub', 'infra')[number % 3]}/app{number}"
        await registries.create(name, *(["1.0"] if number != 7 else []), **kinds[number % 4])
        if number % 4 == 1:
            await ecr.call("put_lifecycle_policy", repositoryName=name, lifecyclePolicyText=LIFECYCLE)
        if number % 4 == 2:
            await ecr.call("set_repository_policy", repositoryName=name, policyText=POLICY)
    path = registries.plan({"from": "*"})

    shown = await registries.run("plan", "show", path)
    rehearsed = await registries.run("migrate", path, "--dry-run")
    assert await registries.names() == set()
    migrated = await registries.run("migrate", path)
    verified = await registries.run("verify", path)

    assert [run.status for run in (shown, rehearsed, migrated, verified)] == [0, 0, 0, 0]
    listed = {line.split()[1] for line in shown.out.splitlines() if not line.startswith("#")}
    assert listed == {line.split("@")[0] for line in rehearsed.out.splitlines()}
    assert len(migrated.out.splitlines()) == len(verified.out.splitlines()) == 11
    expected = await registries.settings(registries.source, SOURCE)
    assert await registries.settings(registries.target, TARGET) == expected
    assert len({json.dumps(each) for each in expected.values()}) > 4
    assert "ECR can copy 12 of these repositories from 000000000000 in eu-west-1" in rehearsed.err
    assert "team/sub/app7 has no tags" in migrated.err
    assert "start-replication-backfill" not in migrated.err
    assert verified.err.endswith("; settings of 12 repositories as planned\n")


async def test_the_source_is_listed_once_and_read_no_more_than_needed(registries: Registries) -> None:
    """Members of the plan replace those of the source, which are then not read; a second run reads no settings."""
    for name in ("team/a", "team/b", "other/c"):
        await registries.create(name, "1")
    own = {"like": "source", "policy": json.loads(POLICY), "tags": {"owner": "me"}, "mutability": "IMMUTABLE"}
    images = [{"from": "team/*"}, {"from": "other/*", "to": "x/{basename}"}]
    path = registries.plan(*images, defaults={"repository": own})
    assert (await registries.run("migrate", path)).status == 0
    counts = registries.source.requests.counts()
    assert counts["DescribeRepositories"] == 1
    assert counts["GetLifecyclePolicy"] == 3
    assert not {"GetRepositoryPolicy", "ListTagsForResource"} & counts.keys()
    found = await registries.settings(registries.target, TARGET)
    assert found.keys() == {"team/a", "team/b", "x/c"}
    assert {each["mutability"] for each in found.values()} == {"IMMUTABLE"}
    assert all(each["tags"] == [("owner", "me")] for each in found.values())

    registries.source.requests.clear()
    again = await registries.run("migrate", path)
    assert "team/a, team/b, x/c exist already, and keep their settings" in again.err
    assert "GetLifecyclePolicy" not in registries.source.requests.counts()


async def test_a_key_goes_only_where_it_can_be_used(registries: Registries) -> None:
    """Same account and region: the key itself. Elsewhere nothing is created until the plan names a key that can be."""
    kms = {"encryptionConfiguration": {"encryptionType": "KMS", "kmsKey": KEY}}
    await registries.create("team/plain", "1")
    await registries.create("team/secret", "1", **kms)
    path = registries.plan({"from": "team/*"}, region=SOURCE)
    assert (await registries.run("migrate", path)).status == 0
    assert (await registries.settings(registries.target, SOURCE))["team/secret"]["encryption"] == {
        "encryptionType": "KMS",
        "kmsKey": KEY,
    }

    path = registries.plan({"from": "team/*"})
    for words in (["--dry-run"], []):
        refused = await registries.run("migrate", path, *words)
        assert (refused.status, refused.out) == (2, "")
        assert "images[0].repository.like: the key of" in refused.err
        assert f"team/secret can't be the same: {KEY} can't encrypt repositories of 000000000000 in {TARGET}; " in (
            refused.err
        )
    assert await registries.names() == set()
    assert (await registries.run("verify", path)).status == 1

    named = {"repository": {"like": "source", "kms_key": "alias/aws/ecr"}}
    assert (await registries.run("migrate", registries.plan({"from": "team/*"}, defaults=named))).status == 0
    found = await registries.settings(registries.target, TARGET)
    assert [found[name]["encryption"] for name in sorted(found)] == [
        {"encryptionType": "AES256"},
        {"encryptionType": "KMS", "kmsKey": "alias/aws/ecr"},
    ]


async def test_a_creation_template_decides_before_the_source(registries: Registries) -> None:
    """So that its key need not be usable, and its settings are not read."""
    kms = {"encryptionConfiguration": {"encryptionType": "KMS", "kmsKey": KEY}}
    await registries.create("team/secret", "1", **kms)
    target = Ecr(registries.target.endpoint_url, region=TARGET)
    await target.call("create_repository_creation_template", prefix="team", appliedFor=["CREATE_ON_PUSH"])
    migrated = await registries.run("migrate", registries.plan({"from": "team/*"}))
    assert migrated.status == 0
    assert "team/secret is left to the creation template for 'team'" in migrated.err
    assert "GetLifecyclePolicy" not in registries.source.requests.counts()


async def test_a_repository_whose_settings_are_refused_is_not_created(registries: Registries) -> None:
    for name in ("team/a", "team/b"):
        await registries.create(name, "1")
    denied = parse_fault("GetLifecyclePolicy,repository=team/a:access-denied")
    registries.source.fault_config = FaultConfig(faults=(denied,))
    migrated = await registries.run("migrate", registries.plan({"from": "team/*"}))
    assert migrated.status == 4
    assert "like: source needs ecr:GetLifecyclePolicy at the source, or the plan's own lifecycle_policy" in migrated.err
    assert await registries.names() == {"team/b"}


async def test_who_may_not_list_a_registry_reads_what_to_do(registries: Registries) -> None:
    denied = parse_fault("DescribeRepositories:access-denied")
    registries.source.fault_config = FaultConfig(faults=(denied,))
    refused = await registries.run("plan", "show", registries.plan({"from": "team/*"}))
    [line] = refused.err.splitlines()
    assert refused.status == 4
    assert f"{registries.source.port} does not list its repositories: DescribeRepositories failed: Acc" in line
    assert line.endswith(" allow this action, or write an entry for each repository in the plan")


async def test_policies_that_name_the_sources_account_are_pointed_out(
    registries: Registries, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They travel as they are, since only their owner knows who should have access."""
    theirs = json.dumps({"Statement": [{**STATEMENT, "Principal": {"AWS": "arn:aws:iam::000000000000:root"}}]})
    ecr = Ecr(registries.source.endpoint_url, region=SOURCE)
    for name, policy in {"team/a": theirs, "team/b": POLICY}.items():
        await registries.create(name, "1")
        await ecr.call("set_repository_policy", repositoryName=name, policyText=policy)
    (tmp_path / "keys").write_text("[other]\naws_access_key_id = AKIAOTHER\naws_secret_access_key = s\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "keys"))
    key = KnownCredentials("AKIAOTHER", "s", account="444455556666")
    async with Emulator(tmp_path / "other", fsync=False, credentials=[key]) as other:
        target = {"region": TARGET, "profile": "other", "endpoint_url": other.endpoint_url}
        path = registries.plan({"from": "team/*"}, targets={"other": target})
        rehearsed = await registries.run("migrate", path, "--dry-run")
        assert rehearsed.status == 0
    assert "the policies of team/a name account 000000000000, as at the source" in rehearsed.err


async def test_half_made_repositories_get_the_policies_of_their_sources(registries: Registries) -> None:
    await registries.create("team/a", "1")
    ecr = Ecr(registries.source.endpoint_url, region=SOURCE)
    await ecr.call("put_lifecycle_policy", repositoryName="team/a", lifecyclePolicyText=LIFECYCLE)
    path = registries.plan({"from": "team/*"})
    for journal in ([], ["--no-resume"]):
        denied = parse_fault("PutLifecyclePolicy:access-denied")
        registries.target.fault_config = FaultConfig(faults=(denied,))
        assert (await registries.run("migrate", path, *journal)).status == 4
        registries.target.fault_config = FaultConfig()
        assert (await registries.run("migrate", path, *journal)).status == 0
        found = await registries.settings(registries.target, TARGET)
        assert found["team/a"]["lifecycle"] == json.loads(LIFECYCLE)
        target = Ecr(registries.target.endpoint_url, region=TARGET)
        await target.call("delete_repository", repositoryName="team/a", force=True)


async def test_archived_images_are_named_and_not_tried_again(registries: Registries) -> None:
    """A pattern of tags leaves them out with a reason; a tag that is named fails, once."""
    await registries.create("team/a", "1", "2", "3")
    for tag in ("1", "2"):
        await registries.archive("team/a", imageTag=tag)
    path = registries.plan({"from": "team/*"})
    shown = await registries.run("plan", "show", path)
    assert [line for line in shown.out.splitlines() if "left out" in line] == [
        f"# {registries.source.host}:{registries.source.port}/team/a:{tag} is left out: archived at the source"
        for tag in ("1", "2")
    ]
    document = json.loads((await registries.run("plan", "show", path, "--output", "json")).out)
    assert [(left["tag"], left["reason"]) for left in document["leftOut"]] == [
        (tag, "archived at the source") for tag in ("1", "2")
    ]
    assert [image["destination"] for image in document["images"]] == ["team/a:3"]
    migrated = await registries.run("migrate", path)
    assert migrated.status == 0
    assert migrated.references.startswith("team/a:3@sha256:")
    assert migrated.err.count("2 archived tags are left out (1, 2); to copy them, restore them") == 1
    assert (await registries.run("verify", path)).status == 0

    registries.source.requests.clear()
    named = await registries.run("migrate", registries.plan({"from": "team/a", "tags": ["1", "3"]}))
    assert named.status == 1
    assert named.err.count("team/a:1 is archived at the source; restore it first: aws ecr update-image-st") == 1
    # The first request learns that a password is needed.
    assert registries.source.requests.counts()["GET /v2/team/a/manifests/1"] == 2


async def test_an_index_with_an_archived_image_names_it(registries: Registries) -> None:
    await registries.create("team/a", "1")
    ecr = Ecr(registries.source.endpoint_url, region=SOURCE)
    child = await ecr.push_image("team/a", None, b'{"architecture":"arm64","os":"linux"}', b"another layer")
    await ecr.put("team/a", index_manifest(child), "2")
    await registries.archive("team/a", imageDigest=digest_of(child))
    migrated = await registries.run("migrate", registries.plan({"from": "team/*"}))
    assert migrated.status == 1
    assert f"team/a@{digest_of(child)} is archived at the source; restore it first: " in migrated.err
    assert "will be tried again" not in migrated.err
    assert migrated.references.startswith("team/a:1@sha256:")


MISTAKES: list[tuple[list[dict[str, object]], str]] = [
    ([{"from": "none/*"}], "images[0].from: {host}/none/* matches no repository: {host} has 3 repositories that you"),
    ([{"from": "team/*", "exclude": "team*"}], "images[0].from: exclude leaves none of the 2 repositories that match"),
    ([{"from": "*", "to": "{basename}"}], "images[0].to: {host}/other/app, {host}/team/app all go to app; write"),
    (
        [{"from": "team/app", "to": "other/app", "tags": ["1"]}, {"from": "other/*", "tags": ["1"]}],
        "images[1]: other/app:1 comes from {host}/other/app, but in images[0] from {host}/team/app",
    ),
    ([{"from": "team/*", "to": f"{'x' * 250}/{{name}}"}], "images[0].from: {host}/team/app: 'xx"),
]


async def test_a_mistake_shows_before_anything_is_created(registries: Registries) -> None:
    for name in ("team/app", "team/b", "other/app"):
        await registries.create(name)
    host = f"{registries.source.host}:{registries.source.port}"
    for number, (images, problem) in enumerate(MISTAKES):
        path = registries.plan(*images)
        for words in (["plan", "show"], ["migrate", "--dry-run"], ["migrate"])[: 1 if number else 3]:
            refused = await registries.run(*words, path)
            assert (refused.status, refused.out) == (2, "")
            assert f"asyncpush: error: {path}: {problem.format(host=host)}" in refused.err
    assert await registries.names() == set()


async def test_two_patterns_for_one_tag_are_a_failure_of_that_tag(registries: Registries) -> None:
    """The tags are known only when they are listed; a repository that two patterns choose is copied once."""
    for name in ("team/app", "other/app"):
        await registries.create(name, "1")
    images = [{"from": "team/*", "to": "{basename}"}, {"from": "other/*", "to": "{basename}"}, {"from": "team/a*"}]
    path = registries.plan(*images, {"from": "team/*"})
    for words in (["plan", "show"], ["migrate", "--dry-run"], ["migrate"]):
        run = await registries.run(*words, path)
        assert run.status == 1
        assert run.err.count("team/app:1 (images[0]) has the same destination; change one of the destinations") == 1
        assert len([line for line in run.out.splitlines() if not line.startswith("#")]) == 2
    assert await registries.names() == {"app", "team/app"}


async def test_ecrs_own_copy_is_not_proposed_where_it_can_not_do_that(registries: Registries) -> None:
    for name in "abcd":
        await registries.create(f"team/{name}")
    images: list[dict[str, object]] = [
        {"from": "team/[a]", "to": "mirror/{name}"},
        {"from": "team/[b]", "tags": {"glob": "*"}},
        {"from": "team/[c]", "platforms": ["linux/amd64"]},
        {"from": "team/[d]", "referrers": False},
    ]
    rehearsed = await registries.run("migrate", registries.plan(*images), "--dry-run")
    assert rehearsed.status == 0
    assert "start-replication-backfill" not in rehearsed.err


async def test_a_catalog_serves_as_well(here: Bench) -> None:
    """Any registry that lists its repositories; one with an invalid name does no harm."""
    for name in ("team/app", "team/x/app", "old/app"):
        here.hold(name, "1", layer(1))

    @here.source.rule("GET", "_catalog")
    async def catalog(request: web.Request) -> web.StreamResponse:
        names = ["UPPER", *sorted(here.source.tags)]
        return web.json_response({"repositories": names})

    report = await here.run(here.plan({"from": "*", "exclude": ["old/*"], "to": "m/{name}"}))
    assert outcomes(report) == {"m/team/app:1": "pushed", "m/team/x/app:1": "pushed"}
    assert [(tag.name, tag.reason) for tag in report.left_out] == [(f"{here.source.host}/old/app", "excluded (old/*)")]
    again = await here.run(here.plan({"from": "*", "exclude": ["old/*"], "to": "m/{name}"}))
    assert set(outcomes(again).values()) == {"present"}
    assert reasons(again) == []
