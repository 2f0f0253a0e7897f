"""A registry as a whole: repositories found in few requests and created as asked, judged by boto3; what it allows."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import botocore.session
import pytest
from aiohttp import web
from anyio import to_thread

import asyncpush
from asyncpush import Registry, Settings
from asyncpush.api import open_logins
from asyncpush.ecr.session import registry_address, registry_host
from asyncpush.emulator import Emulator, KnownCredentials
from asyncpush.emulator.faults import FaultConfig, parse_fault
from asyncpush.errors import ConfigurationError, RegistryError, ServiceError
from asyncpush.journal import open_journal
from asyncpush.reference import RegistryName, parse_registry
from asyncpush.settings import AwsConfiguration, RepositorySettings, SourceRegistry
from support.aws import REGION, aws, judge
from support.images import Layout, layer_tar
from support.relay import NO_WAITS, Answer, Relay, lost_reply, passed, refused, relay_to
from support.servers import serving_http

OWN, OTHER = "000000000000", "123456789012"
DENIED = refused("AccessDeniedException")
POLICY = json.dumps(
    {
        "Version": "2012-10-17",
        "Statement": [{"Sid": "pull", "Effect": "Allow", "Principal": "*", "Action": ["ecr:BatchGetImage"]}],
    }
)
LIFECYCLE = json.dumps(
    {
        "rules": [
            {
                "rulePriority": 1,
                "selection": {
                    "tagStatus": "untagged",
                    "countType": "sinceImagePushed",
                    "countUnit": "days",
                    "countNumber": 14,
                },
                "action": {"type": "expire"},
            }
        ]
    }
)


@dataclass(frozen=True)
class Bench:
    """A registry behind a relay, and boto3 past it."""

    relay: Relay
    registry: Registry
    service: str

    async def boto3(self, operation: str, **members: Any) -> Any:
        client = await to_thread.run_sync(judge, self.relay.target, self.service)
        try:
            return await to_thread.run_sync(partial(getattr(client, operation), **members))
        finally:
            client.close()


Open = Callable[..., AbstractAsyncContextManager[Bench]]


@pytest.fixture
def bench_to(emulator: Emulator) -> Open:
    @asynccontextmanager
    async def opened(name: RegistryName | None = None) -> AsyncIterator[Bench]:
        async with (
            relay_to(emulator.endpoint_url) as relay,
            asyncpush.connect(name, aws=aws(relay.url), settings=Settings(retry=NO_WAITS)) as registry,
        ):
            yield Bench(relay, registry, name.service if name else "ecr")

    return opened


@pytest.fixture
async def bench(bench_to: Open) -> AsyncIterator[Bench]:
    async with bench_to() as opened:
        yield opened


PUBLIC = RegistryName("ecr-public", OWN, "us-east-1", host="public.ecr.aws")
NAMES = [f"team/app{number:04}" for number in range(230)]


async def make(bench: Bench, names: list[str]) -> None:
    async with anyio.create_task_group() as tg:
        for name in names:
            tg.start_soon(bench.registry.admin.create, name, RepositorySettings())


@pytest.mark.parametrize("name", [None, PUBLIC])
async def test_repositories_are_found_by_one_listing(bench_to: Open, name: RegistryName | None) -> None:
    async with bench_to(name) as bench:
        await make(bench, NAMES[:30])
        found = await bench.registry.admin.repositories([*NAMES[:20], "team/absent"])
        assert bench.relay.seen["DescribeRepositories"] == 1
        assert sorted(found) == NAMES[:20]
        assert {info.registry_id for info in found.values()} == {OWN}
        assert await bench.registry.admin.repositories([]) == {}


async def test_a_listing_goes_on_until_all_are_found_and_no_further(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncpush.ecr.admin.PAGE_SIZE", 10)
    await make(bench, NAMES[:50])
    assert sorted(await bench.registry.admin.repositories([NAMES[3], NAMES[25]])) == [NAMES[3], NAMES[25]]
    assert bench.relay.seen["DescribeRepositories"] == 3
    assert sorted(await bench.registry.admin.repositories([NAMES[3], "zzz"])) == [NAMES[3]]
    assert bench.relay.seen["DescribeRepositories"] == 3 + 5


async def test_one_repository_is_asked_for_by_its_name(bench: Bench) -> None:
    await make(bench, NAMES[:1])
    assert list(await bench.registry.admin.repositories(NAMES[:1])) == NAMES[:1]
    assert await bench.registry.admin.repositories(["team/absent"]) == {}
    assert bench.relay.seen["DescribeRepositories"] == 2


async def test_who_may_not_list_asks_for_the_names(bench: Bench) -> None:
    await make(bench, NAMES)
    bench.relay.plan("DescribeRepositories", DENIED)
    missing = ["team/app0001x", "team/zero", "aaa"]
    found = await bench.registry.admin.repositories([*NAMES, *missing])
    assert sorted(found) == NAMES
    # The listing; 3 batches; and once more for each that is missing.
    assert bench.relay.seen["DescribeRepositories"] == 1 + 3 + 3


async def test_where_ecr_does_not_say_which_is_missing_each_is_asked_for(bench: Bench) -> None:
    await make(bench, NAMES[:3])
    vague = refused("RepositoryNotFoundException", "not there")
    bench.relay.plan("DescribeRepositories", DENIED, vague)
    assert sorted(await bench.registry.admin.repositories([*NAMES[:3], "absent"])) == NAMES[:3]
    assert bench.relay.seen["DescribeRepositories"] == 1 + 1 + 4


async def test_who_may_do_neither_is_told_so(bench: Bench) -> None:
    bench.relay.plan("DescribeRepositories", *[DENIED] * 2)
    with pytest.raises(ServiceError, match="AccessDeniedException"):
        await bench.registry.admin.repositories(NAMES[:2])


async def test_what_a_repository_is_like_is_told(bench: Bench) -> None:
    settings = RepositorySettings(mutability="IMMUTABLE_WITH_EXCLUSION", exclusions=("dev-*", "nightly"))
    await bench.registry.admin.create("team/app", settings)
    [info] = (await bench.registry.admin.repositories(["team/app"])).values()
    assert (info.name, info.registry_id) == ("team/app", OWN)
    assert (info.mutability, info.exclusions) == ("IMMUTABLE_WITH_EXCLUSION", ("dev-*", "nightly"))


FULL = RepositorySettings(
    mutability="IMMUTABLE_WITH_EXCLUSION",
    exclusions=("dev-*", "nightly"),
    scan_on_push=True,
    encryption="KMS_DSSE",
    kms_key=f"arn:aws:kms:{REGION}:{OWN}:key/1234abcd-12ab-34cd-56ef-1234567890ab",
    resource_tags=(("team", "platform"), ("cost", "42")),
    policy=POLICY,
    lifecycle_policy=LIFECYCLE,
)


async def test_boto3_reads_back_every_setting_of_a_new_repository(bench: Bench) -> None:
    assert await bench.registry.admin.create("team/app", FULL)

    [stored] = (await bench.boto3("describe_repositories", repositoryNames=["team/app"]))["repositories"]
    assert stored["imageTagMutability"] == FULL.mutability
    filters = [(each["filterType"], each["filter"]) for each in stored["imageTagMutabilityExclusionFilters"]]
    assert filters == [("WILDCARD", "dev-*"), ("WILDCARD", "nightly")]
    assert stored["imageScanningConfiguration"] == {"scanOnPush": True}
    assert stored["encryptionConfiguration"] == {"encryptionType": "KMS_DSSE", "kmsKey": FULL.kms_key}
    tags = await bench.boto3("list_tags_for_resource", resourceArn=stored["repositoryArn"])
    assert {(tag["Key"], tag["Value"]) for tag in tags["tags"]} == set(FULL.resource_tags)
    policy = await bench.boto3("get_repository_policy", repositoryName="team/app")
    assert json.loads(policy["policyText"]) == json.loads(POLICY)
    lifecycle = await bench.boto3("get_lifecycle_policy", repositoryName="team/app")
    assert json.loads(lifecycle["lifecyclePolicyText"]) == json.loads(LIFECYCLE)


async def test_without_settings_a_repository_has_ecrs_defaults(bench: Bench) -> None:
    assert await bench.registry.admin.create("team/app", RepositorySettings(scan_on_push=False))
    [stored] = (await bench.boto3("describe_repositories", repositoryNames=["team/app"]))["repositories"]
    assert stored["imageTagMutability"] == "MUTABLE"
    assert stored["encryptionConfiguration"] == {"encryptionType": "AES256"}
    assert bench.relay.seen == {"CreateRepository": 1}


async def test_moto_takes_the_same_settings(need: Callable[[str], str]) -> None:
    need("moto")
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    await to_thread.run_sync(server.start)
    try:
        host, port = server.get_host_and_port()
        url = f"http://{host}:{port}"
        async with asyncpush.connect(aws=aws(url), settings=Settings(retry=NO_WAITS)) as registry:
            settings = RepositorySettings(
                mutability="IMMUTABLE",
                scan_on_push=True,
                encryption="KMS",
                kms_key=FULL.kms_key,
                resource_tags=FULL.resource_tags,
                policy=POLICY,
                lifecycle_policy=LIFECYCLE,
            )
            assert await registry.admin.create("team/app", settings)
            assert not await registry.admin.create("team/app", RepositorySettings())
            found = await registry.admin.repositories(["team/app", "team/absent"])
        assert {name: info.mutability for name, info in found.items()} == {"team/app": "IMMUTABLE"}
        client = await to_thread.run_sync(judge, url)
        [stored] = (await to_thread.run_sync(client.describe_repositories))["repositories"]
        assert stored["imageScanningConfiguration"] == {"scanOnPush": True}
        assert stored["encryptionConfiguration"] == {"encryptionType": "KMS", "kmsKey": FULL.kms_key}
        policy = await to_thread.run_sync(partial(client.get_repository_policy, repositoryName="team/app"))
        assert json.loads(policy["policyText"]) == json.loads(POLICY)
        await to_thread.run_sync(partial(client.delete_repository, repositoryName="team/app", force=True))
    finally:
        await to_thread.run_sync(server.stop)


async def test_a_public_repository_gets_what_ecr_public_knows(bench_to: Open) -> None:
    async with bench_to(PUBLIC) as bench:
        assert await bench.registry.admin.create("team/app", FULL)
        assert bench.relay.seen == {"CreateRepository": 1, "SetRepositoryPolicy": 1}
        [stored] = (await bench.boto3("describe_repositories", repositoryNames=["team/app"]))["repositories"]
        tags = await bench.boto3("list_tags_for_resource", resourceArn=stored["repositoryArn"])
        assert {(tag["Key"], tag["Value"]) for tag in tags["tags"]} == set(FULL.resource_tags)
    taken = botocore.session.Session().get_service_model("ecr-public").operation_model("CreateRepository").input_shape
    assert "tags" in taken.members
    assert "imageTagMutability" not in taken.members


async def test_a_repository_that_is_there_is_left_as_it_is(bench: Bench) -> None:
    await bench.registry.admin.create("team/app", RepositorySettings())
    assert await bench.registry.admin.create("team/app", FULL) is False
    assert bench.relay.seen == {"CreateRepository": 2}


async def test_a_lost_reply_leaves_no_repository_without_its_policies(bench: Bench) -> None:
    bench.relay.plan("CreateRepository", refused("ServerException", status=500), lost_reply)
    assert await bench.registry.admin.create("team/app", FULL) is True
    policy = await bench.boto3("get_repository_policy", repositoryName="team/app")
    assert json.loads(policy["policyText"]) == json.loads(POLICY)
    await bench.boto3("get_lifecycle_policy", repositoryName="team/app")


async def test_a_lost_reply_overwrites_no_policy_of_somebody_elses(bench: Bench) -> None:
    await bench.registry.admin.create("team/app", RepositorySettings(policy=POLICY))
    bench.relay.plan("CreateRepository", refused("ServerException", status=500))
    other = POLICY.replace("pull", "others")
    await bench.registry.admin.create("team/app", RepositorySettings(policy=other, lifecycle_policy=LIFECYCLE))
    policy = await bench.boto3("get_repository_policy", repositoryName="team/app")
    assert json.loads(policy["policyText"]) == json.loads(POLICY)


async def test_a_policy_that_is_refused_is_told_with_what_is_left(bench: Bench) -> None:
    bench.relay.plan("PutLifecyclePolicy", DENIED)
    with pytest.raises(ServiceError, match=r"PutLifecyclePolicy.*team/app was created, but lacks it"):
        await bench.registry.admin.create("team/app", FULL)


async def template(bench: Bench, prefix: str, *applied_for: str) -> None:
    await bench.boto3("create_repository_creation_template", prefix=prefix, appliedFor=list(applied_for))


async def test_the_longest_template_that_creates_on_push_is_found(bench: Bench) -> None:
    for prefix in ("team", "team/apps", "tea"):
        await template(bench, prefix, "CREATE_ON_PUSH")
    await template(bench, "team/apps/web", "PULL_THROUGH_CACHE", "REPLICATION")
    admin = bench.registry.admin
    for name, prefix in (
        ("team/apps/web/ui", "team/apps"), ("team/x", "team"), ("teams/x", None), ("other", None),
    ):  # fmt: skip
        assert await admin.template_for(name) == prefix, name
    assert bench.relay.seen["DescribeRepositoryCreationTemplates"] == 1


async def test_the_root_template_is_for_all_others(bench: Bench) -> None:
    await template(bench, "ROOT", "CREATE_ON_PUSH")
    await template(bench, "team", "REPLICATION", "CREATE_ON_PUSH")
    assert await bench.registry.admin.template_for("other/app") == "ROOT"
    assert await bench.registry.admin.template_for("team/app") == "team"


async def test_templates_come_in_pages(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asyncpush.ecr.admin.PAGE_SIZE", 2)
    for number in range(5):
        await template(bench, f"team{number}", "CREATE_ON_PUSH")
    assert await bench.registry.admin.template_for("team4/app") == "team4"
    assert bench.relay.seen["DescribeRepositoryCreationTemplates"] == 3


async def test_what_may_not_be_asked_is_not_known(bench: Bench) -> None:
    for operation in ("DescribeRepositoryCreationTemplates", "GetAccountSetting", "DescribeRegistry"):
        bench.relay.plan(operation, DENIED)
    assert await bench.registry.admin.template_for("team/app") is None
    assert await bench.registry.admin.mounts_blobs() is None


async def test_whether_blobs_are_mounted_is_asked_once(bench: Bench) -> None:
    await bench.boto3("put_account_setting", name="BLOB_MOUNTING", value="ENABLED")
    answers = []

    async def ask() -> None:
        answers.append(await bench.registry.admin.mounts_blobs())

    async with anyio.create_task_group() as tg:
        for _ in range(5):
            tg.start_soon(ask)
    assert answers == [True] * 5
    assert bench.relay.seen["GetAccountSetting"] == 1


async def test_blobs_are_not_mounted_where_the_setting_is_off_or_unknown(bench_to: Open) -> None:
    async with bench_to() as bench:
        assert await bench.registry.admin.mounts_blobs() is False
    async with bench_to() as bench:
        bench.relay.plan("GetAccountSetting", refused("ValidationException"))
        assert await bench.registry.admin.mounts_blobs() is None
    async with bench_to(PUBLIC) as bench:
        assert await bench.registry.admin.mounts_blobs() is False
        assert await bench.registry.admin.template_for("team/app") is None
        assert not bench.relay.seen


async def test_another_accounts_settings_are_not_known(bench_to: Open) -> None:
    async with bench_to(RegistryName("ecr", "123456789012", REGION)) as bench:
        await bench.boto3("put_account_setting", name="BLOB_MOUNTING", value="ENABLED")
        await template(bench, "ROOT", "CREATE_ON_PUSH")
        assert await bench.registry.admin.mounts_blobs() is None
        assert await bench.registry.admin.template_for("team/app") is None
    async with bench_to(RegistryName("ecr", OWN, REGION)) as bench:
        assert await bench.registry.admin.mounts_blobs() is True
        assert await bench.registry.admin.template_for("team/app") == "ROOT"


async def test_the_account_is_learnt_and_stands_in_addresses_from_then_on(bench_to: Open) -> None:
    async with bench_to() as bench:
        endpoint = bench.relay.url.removeprefix("http://")
        assert bench.registry.repository("team/app").address == f"{endpoint}/{REGION}//team/app"
        assert await bench.registry.account() == OWN
        assert bench.registry.repository("team/app").address == f"{endpoint}/{REGION}/{OWN}/team/app"
        assert bench.relay.seen == {"DescribeRegistry": 1}
    async with bench_to() as bench:
        await bench.registry.admin.create("team/app", RepositorySettings())
        assert await bench.registry.account() == OWN
        assert "DescribeRegistry" not in bench.relay.seen
    async with bench_to() as bench:
        bench.relay.plan("DescribeRegistry", DENIED)
        assert await bench.registry.account() == OWN
    async with bench_to() as bench:
        bench.relay.plan("DescribeRegistry", DENIED)
        bench.relay.plan("DescribeRepositories", DENIED)
        assert await bench.registry.account() is None
    async with bench_to(PUBLIC) as bench:
        assert await bench.registry.account() == OWN
        assert bench.registry.repository("team/app").address == f"{bench.relay.url[7:]}/public/{OWN}/team/app"
        assert not bench.relay.seen


def tells_in_login(account: str) -> Answer:
    """GetAuthorizationToken, as ECR answers it: with the address of the caller's registry."""

    async def answer(request: web.Request, relay: Relay) -> web.StreamResponse:
        given = await passed(request, relay)
        assert isinstance(given.body, bytes)
        document = json.loads(given.body)
        document["authorizationData"][0]["proxyEndpoint"] = f"https://{account}.dkr.ecr.{REGION}.amazonaws.com"
        return web.json_response(document, content_type="application/x-amz-json-1.1")

    return answer


async def test_who_may_only_push_learns_the_account_from_the_login(bench_to: Open) -> None:
    async with bench_to() as bench:
        for operation in ("DescribeRegistry", "DescribeRepositories"):
            bench.relay.plan(operation, DENIED)
        bench.relay.plan("GetAuthorizationToken", tells_in_login("210987654321"))
        assert await bench.registry.account() == "210987654321"
        assert bench.registry.repository("app").address.endswith(f"/{REGION}/210987654321/app")


@pytest.mark.parametrize("service", [None, RegistryName("ecr-public", None, "us-east-1", host="public.ecr.aws")])
async def test_a_journal_learns_the_account_from_sts_or_is_refused(
    emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, service: RegistryName | None
) -> None:
    """The journal of a program: what it remembers must name the account, whatever ECR lets the caller ask."""
    asked = []

    async def sts(request: web.Request) -> web.Response:
        asked.append(await request.text())
        names = ("GetCallerIdentityResponse", "GetCallerIdentityResult", "Account")
        before, after = (f"<{name}>" for name in names), (f"</{name}>" for name in reversed(names))
        return web.Response(text=f"{''.join(before)}210987654321{''.join(after)}", content_type="text/xml")

    emulator.fault_config = FaultConfig(
        faults=tuple(parse_fault(f"{name}:access-denied") for name in ("Describe*", "Get*"))
    )
    async with serving_http(sts) as port, open_journal(tmp_path / "journal") as journal:
        connect = partial(asyncpush.connect, service, aws=aws(emulator.endpoint_url), journal=journal)
        with pytest.raises(ConfigurationError, match="write the registry with its account"):
            async with connect():
                pass
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", f"http://127.0.0.1:{port}")
        async with connect() as registry:
            assert "/210987654321/" in registry.repository("app").address
    assert [text.partition("&")[0] for text in asked] == ["Action=GetCallerIdentity"]


@pytest.mark.parametrize(
    ("written", "address"),
    [
        ("123456789012.dkr.ecr.eu-west-1.amazonaws.com", "123456789012.dkr.ecr.eu-west-1.amazonaws.com"),
        ("123456789012.dkr.ecr-fips.us-east-1.amazonaws.com", "123456789012.dkr.ecr.us-east-1.amazonaws.com"),
        ("123456789012.dkr-ecr.us-east-1.on.aws", "123456789012.dkr.ecr.us-east-1.amazonaws.com"),
        ("123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn", "123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn"),
        ("public.ecr.aws/team", "public.ecr.aws/team"),
    ],
)
async def test_a_registry_at_aws_has_one_address_whichever_host_is_written(written: str, address: str) -> None:
    keys = AwsConfiguration(access_key_id="test", secret_access_key="test")
    async with asyncpush.connect(written, aws=keys) as registry:
        assert registry.repository("team/app").address == f"{address}/team/app"


async def test_the_host_that_is_made_for_an_account_is_one_that_can_be_written() -> None:
    session = botocore.session.Session()
    regions = {
        partition: session.get_available_regions("ecr", partition_name=partition)
        for partition in session.get_available_partitions()
    }
    seen = 0
    for partition, names in regions.items():
        for region in names[:2]:

            class Meta:
                endpoint_url = f"https://api.ecr.{region}.amazonaws.com"

            Meta.partition, Meta.region_name = partition, region  # type: ignore[attr-defined]
            client = type("Client", (), {"meta": Meta})
            name = parse_registry(registry_host(client, OWN))
            assert (name.id, name.region) == (OWN, region)
            assert registry_address(client, name, OWN) == name.host
            seen += 1
    assert seen >= 6


async def test_a_result_names_what_every_tool_can_pull(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The host that was named; else AWS's, by the account in answers that come anyway; else the endpoint's."""
    find = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *more, **other: find("127.0.0.1", *more, **other))
    layout = Layout()
    folder = layout.tag(layout.image(layer_tar("app")), "1").write(tmp_path / "app")
    host = f"{{}}.dkr.ecr.{REGION}.amazonaws.com"
    own, endpoint = f"127.0.0.1:{emulator.port}", f"http://api.ecr.{REGION}.amazonaws.com:{emulator.port}"
    for name, url, expected in (
        (None, endpoint, host.format(OWN)),  # pushed: PutImage tells
        (None, endpoint, host.format(OWN)),  # there already: BatchGetImage tells
        (host.format(OTHER), endpoint, host.format(OTHER)),
        (None, emulator.endpoint_url, own),
        (host.format(OTHER), emulator.endpoint_url, host.format(OTHER)),
    ):
        async with asyncpush.connect(name, aws=aws(url), settings=Settings(create_repository=True)) as registry:
            result = await asyncpush.push(registry, f"oci:{folder}:1", "team/app:1.4")
        assert result.reference == f"{expected}/team/app:1.4@{result.digest}"
    asked = set(emulator.requests.counts())
    assert asked.isdisjoint({"DescribeRegistry", "GetAuthorizationToken", "DescribeRepositories"}), asked


async def test_logins_are_for_ecr_and_hosts_with_an_aws_configuration(emulator: Emulator) -> None:
    """AWS credentials log in to ECR's hosts, and to hosts that name an AWS configuration."""
    configured = SourceRegistry(host="mirror.example:5000", aws=aws(emulator.endpoint_url))
    async with open_logins() as logins:
        for host in ("docker.io", "ghcr.io", "public.ecr.aws", "127.0.0.1:5000"):
            assert logins(SourceRegistry(host=host)) is None
        for host in ("123456789012.dkr.ecr.eu-west-1.amazonaws.com", "123456789012.dkr-ecr-fips.us-east-1.on.aws"):
            assert logins(SourceRegistry(host=host)) is not None
        login = logins(configured)
        assert login is not None
        assert logins(configured) is login
        assert not emulator.requests
        async with anyio.create_task_group() as tg:
            for _ in range(5):
                tg.start_soon(login)
        credentials = await login()
    assert credentials.username == "AWS"
    assert credentials.password not in repr(credentials)
    assert emulator.requests.counts() == {"GetAuthorizationToken": 1}


async def test_ecr_publics_login_is_one_object_without_a_list(emulator: Emulator) -> None:
    source = SourceRegistry(host="public.ecr.aws", aws=aws(emulator.endpoint_url))
    async with open_logins() as logins:
        login = logins(source)
        assert login is not None
        assert (await login()).username == "AWS"


async def test_a_login_that_is_refused_says_why(tmp_path: Path) -> None:
    keys = [KnownCredentials("other", "secret")]
    async with Emulator(tmp_path / "other", fsync=False, credentials=keys) as emulator, open_logins() as logins:
        login = logins(SourceRegistry(host="x.example", aws=aws(emulator.endpoint_url)))
        assert login is not None
        with pytest.raises(RegistryError, match="GetAuthorizationToken failed"):
            await login()


async def test_a_repository_made_like_another_is_the_same(bench: Bench) -> None:
    """What is read of one makes the next; what is given replaces it, and is not read."""
    admin = bench.registry.admin
    await admin.create("team/full", FULL)
    await admin.create("team/bare", RepositorySettings())
    bare, full = await admin.all_repositories()
    assert await admin.settings_of(full, RepositorySettings()) == FULL
    assert await admin.settings_of(bare, RepositorySettings()) == RepositorySettings(
        mutability="MUTABLE", scan_on_push=False, encryption="AES256"
    )
    assert (await admin.settings_of(bare, RepositorySettings(kms_key="k"))).kms_key is None
    bench.relay.seen.clear()
    given = RepositorySettings(
        mutability="MUTABLE", encryption="AES256", resource_tags=(("a", "b"),), policy="{}", lifecycle_policy="{}"
    )
    assert await admin.settings_of(full, given) == replace(given, scan_on_push=True)
    assert not bench.relay.seen


async def test_tags_that_only_aws_can_set_are_left_out(bench: Bench) -> None:
    async def tagged(*_: object) -> web.StreamResponse:
        tags = [{"Key": "aws:cloudformation:stack-name", "Value": "x"}, {"Key": "mine", "Value": "y"}]
        return web.json_response({"tags": tags})

    await bench.registry.admin.create("team/full", RepositorySettings())
    [info] = await bench.registry.admin.all_repositories()
    bench.relay.plan("ListTagsForResource", tagged)
    settings = await bench.registry.admin.settings_of(info, RepositorySettings())
    assert settings.resource_tags == (("mine", "y"),)


async def test_who_may_not_describe_images_learns_of_no_archive(bench: Bench) -> None:
    """None is not the same as no archived image; an endpoint without an archive has none."""
    admin = bench.registry.admin
    await admin.create("team/full", RepositorySettings())
    assert await admin.archived_images("team/full") == ()
    bench.relay.plan("DescribeImages", DENIED, DENIED)
    assert await admin.archived_images("team/full") is None
    unknown = refused("InvalidParameterException")
    bench.relay.plan("DescribeImages", unknown, unknown)
    assert await admin.archived_images("team/full") == ()
    assert await admin.archived_images("team/absent") == ()


@pytest.mark.parametrize(("operation", "member"), [("GetRepositoryPolicy", "policy"), ("ListTagsForResource", "tags")])
async def test_what_the_source_refuses_names_what_makes_it_unnecessary(
    bench: Bench, operation: str, member: str
) -> None:
    await bench.registry.admin.create("team/full", RepositorySettings())
    [info] = await bench.registry.admin.all_repositories()
    bench.relay.plan(operation, DENIED)
    with pytest.raises(ServiceError) as caught:
        await bench.registry.admin.settings_of(info, RepositorySettings())
    assert caught.value.hint == f"like: source needs ecr:{operation} at the source, or the plan's own {member}"
