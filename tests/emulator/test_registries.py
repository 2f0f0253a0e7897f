"""One emulator holds registries of several accounts and regions, private and public, apart from each other."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from anyio import to_thread
from hypothesis import given
from hypothesis import strategies as st

from asyncpush.emulator import Emulator, KnownCredentials, Quirks
from asyncpush.emulator.auth.authentication import Principal, read_principal
from asyncpush.emulator.registry import RegistryId
from asyncpush.errors import UsageError
from support.aws import token
from support.emulator_client import Ecr, digest_of, image_manifest

ACCOUNTS = {"AKIAONE": "111111111111", "AKIATWO": "222222222222"}
KEYS = {key: KnownCredentials(key, "test", account=account) for key, account in ACCOUNTS.items()}
KEYS["test"] = KnownCredentials("test", "test", account="000000000000")
CONFIG = b"{}"


@pytest.fixture
async def several(tmp_path: Path) -> AsyncIterator[Emulator]:
    async with Emulator(tmp_path / "ecr", fsync=False, credentials=KEYS.values()) as emulator:
        yield emulator


def names(answer: dict[str, list[dict[str, str]]]) -> list[str]:
    return [repository["repositoryName"] for repository in answer["repositories"]]


async def test_accounts_and_regions_have_repositories_of_their_own(several: Emulator, tmp_path: Path) -> None:
    clients = {
        (account, region): Ecr(several.endpoint_url, region=region, keys=(key, "test", None))
        for key, account in [("test", "000000000000"), *ACCOUNTS.items()]
        for region in ("us-east-1", "eu-central-1")
    }
    for (account, region), ecr in clients.items():
        created = (await ecr.call("create_repository", repositoryName="app"))["repository"]
        assert created["registryId"] == account
        assert created["repositoryArn"] == f"arn:aws:ecr:{region}:{account}:repository/app"
        await ecr.push_image("app", "v1", CONFIG, f"{account} {region}".encode())
    for (account, region), ecr in clients.items():
        own = image_manifest(CONFIG, f"{account} {region}".encode())
        assert await ecr.tags("app") == {digest_of(own): ["v1"]}
        assert (tmp_path / "ecr/repositories/ecr" / account / region / "app/_layout/index.json").is_file()


async def test_a_registry_id_leads_to_another_account_in_the_same_region(several: Emulator) -> None:
    """A registry id leads to another account's repositories of the same region."""
    one = Ecr(several.endpoint_url, keys=("AKIAONE", "test", None))
    two = Ecr(several.endpoint_url, keys=("AKIATWO", "test", None))
    await one.call("create_repository", repositoryName="app")
    for operation in ("initiate_layer_upload", "list_images"):
        await two.call(operation, repositoryName="app", registryId="111111111111")
        refusal = await two.refused(operation, repositoryName="app")
        assert refusal.code == "RepositoryNotFoundException"
        assert refusal.message.endswith("in the registry with id '222222222222'")
    elsewhere = Ecr(several.endpoint_url, keys=("AKIATWO", "test", None), region="eu-west-1")
    refusal = await elsewhere.refused("list_images", repositoryName="app", registryId="111111111111")
    assert refusal.code == "RepositoryNotFoundException"
    assert names(await two.call("describe_repositories", registryId="111111111111")) == ["app"]
    assert names(await two.call("describe_repositories", registryId="999999999999")) == []


async def test_an_upload_is_another_registrys_even_under_the_same_name(several: Emulator) -> None:
    one, two = (Ecr(several.endpoint_url, keys=(key, "test", None)) for key in ACCOUNTS)
    for ecr in (one, two):
        await ecr.call("create_repository", repositoryName="app")
    upload_id = await one.begin("app")
    refusal = await two.refused(
        "complete_layer_upload", repositoryName="app", uploadId=upload_id, layerDigests=[digest_of(b"")]
    )
    assert refusal.code == "UploadNotFoundException"


async def test_public_and_private_repositories_are_apart(several: Emulator) -> None:
    public, private = Ecr(several.endpoint_url, service="ecr-public"), Ecr(several.endpoint_url)
    await public.call("create_repository", repositoryName="app")
    assert names(await private.call("describe_repositories")) == []
    await private.call("create_repository", repositoryName="app")
    assert await public.tags("app") == {}
    west = Ecr(several.endpoint_url, service="ecr-public", region="us-west-2")
    assert names(await west.call("describe_repositories")) == ["app"]


async def test_a_public_registry_that_no_account_has_is_not_found(several: Emulator) -> None:
    public = Ecr(several.endpoint_url, service="ecr-public")
    for members in ({"registryId": "999999999999"}, {"registryId": "999999999999", "repositoryName": "app"}):
        operation = "initiate_layer_upload" if "repositoryName" in members else "describe_repositories"
        assert (await public.refused(operation, **members)).code == "RegistryNotFoundException"
    refusal = await public.refused("initiate_layer_upload", registryId="111111111111", repositoryName="app")
    assert refusal.code == "RepositoryNotFoundException"


async def test_a_pull_finds_what_its_host_names_or_else_what_has_the_name(several: Emulator) -> None:
    manifests = {}
    for account, key in (("111111111111", "AKIAONE"), ("222222222222", "AKIATWO")):
        ecr = Ecr(several.endpoint_url, keys=(key, "test", None), region="eu-west-1")
        await ecr.call("create_repository", repositoryName="app")
        manifests[account] = await ecr.push_image("app", "v1", CONFIG, account.encode())
    hosts = {f"{account}.dkr.ecr.eu-west-1.amazonaws.com": body for account, body in manifests.items()}
    hosts |= {f"{several.host}:{several.port}": manifests["111111111111"]}
    authorization = {"Authorization": f"Basic {await to_thread.run_sync(token, several.endpoint_url)}"}
    async with aiohttp.ClientSession(several.endpoint_url, headers=authorization) as http:
        for host, body in hosts.items():
            async with http.get("/v2/app/manifests/v1", headers={"Host": host}) as response:
                assert await response.read() == body
        host = {"Host": "111111111111.dkr.ecr.us-west-2.amazonaws.com"}
        async with http.get("/v2/app/manifests/v1", headers=host) as response:
            assert response.status == 404


async def test_an_unsigned_request_is_the_default_accounts(tmp_path: Path) -> None:
    """A request without a signature is the default account's in the default region."""
    async with Emulator(tmp_path, fsync=False, verify_signatures=False, credentials=KEYS.values()) as emulator:
        await Ecr(emulator.endpoint_url).call("create_repository", repositoryName="app")
        await Ecr(emulator.endpoint_url, keys=("AKIAONE", "any", None)).call("create_repository", repositoryName="one")
        headers = {"X-Amz-Target": "AmazonEC2ContainerRegistry_V20150921.DescribeRepositories"}
        async with aiohttp.ClientSession(emulator.endpoint_url) as http, http.post("/", headers=headers) as response:
            assert names(json.loads(await response.read())) == ["app"]


@given(st.text())
def test_a_header_that_is_no_signature_is_nobodys(text: str) -> None:
    assert read_principal({"Authorization": text}, KEYS) == Principal()


@given(st.from_regex(r"[A-Za-z0-9._/-]{1,50}", fullmatch=True))
def test_whatever_region_is_claimed_is_one_component_of_a_path(region: str) -> None:
    scope = f"AWS4-HMAC-SHA256 Credential=AKIAONE/20260101/{region}/ecr/aws4_request, SignedHeaders=host, Signature=0"
    caller = read_principal({"Authorization": scope}, KEYS)
    assert len(RegistryId("ecr", caller.account, caller.region).path.parts) == 3
    assert ".." not in caller.region
    assert caller.account in ("111111111111", "000000000000")


@pytest.mark.parametrize(
    ("region", "partition"), [("cn-north-1", "aws-cn"), ("us-gov-west-1", "aws-us-gov"), ("eu-west-1", "aws")]
)
def test_an_arn_has_its_regions_partition(region: str, partition: str) -> None:
    assert RegistryId("ecr", "111111111111", region).arn("app") == (
        f"arn:{partition}:ecr:{region}:111111111111:repository/app"
    )


async def test_a_public_alias_or_region_can_be_refused(tmp_path: Path) -> None:
    strict = Quirks(unknown_alias="not-found", public_regions="documented")
    async with Emulator(tmp_path, fsync=False, quirks=strict) as emulator:
        public = Ecr(emulator.endpoint_url, service="ecr-public")
        refusal = await public.refused("initiate_layer_upload", repositoryName="app", registryId="alias")
        assert refusal.code == "RegistryNotFoundException"
        await public.call("describe_repositories")
        elsewhere = Ecr(emulator.endpoint_url, service="ecr-public", region="eu-west-1")
        assert (await elsewhere.refused("describe_repositories")).code == "UnsupportedCommandException"


def test_an_account_id_has_twelve_digits() -> None:
    for account in ("1", "../../etc", "0" * 13):
        with pytest.raises(UsageError, match=r"invalid account .* of AKIAONE"):
            KnownCredentials("AKIAONE", "test", account=account)
