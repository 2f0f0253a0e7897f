"""``asyncpush doctor``: what it finds is what a push meets, what is broken is named, and nothing is changed."""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, redirect_stdout
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import anyio
import pytest
from aiohttp import web
from anyio import to_thread

from asyncpush.cli.main import run_app
from asyncpush.doctor.findings import Check, Finding, run_checks
from asyncpush.doctor.machine import check_proxies
from asyncpush.doctor.run import Subject, examine
from asyncpush.emulator import Emulator, FaultConfig, Quirks
from asyncpush.emulator.faults import parse_fault
from asyncpush.reference import parse_destination
from support.aws import REGION, aws, judge, judge_in
from support.commands import Ran, run_beside
from support.images import app_layout
from support.migrations import Bench
from support.registry_server import basic, refusal
from support.relay import Relay, hang, passed, refused, relay_to

#: A port that nobody listens at.
DEAD = "http://127.0.0.1:9"

#: The actions of a push; those without which it succeeds nevertheless have a note.
PUSH = {
    "BatchCheckLayerAvailability": "problem",
    "InitiateLayerUpload": "problem",
    "UploadLayerPart": "problem",
    "CompleteLayerUpload": "problem",
    "PutImage": "problem",
    "BatchGetImage": "note",
    "DescribeRepositories": "note",
    "GetAuthorizationToken": "note",
}


def environment(url: str, **changed: str) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL_ECR": url,
        "AWS_ENDPOINT_URL_ECR_PUBLIC": url,
        "AWS_REGION": REGION,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        **changed,
    }


async def examined(url: str, *words: str | Path, **changed: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """The exit status of ``asyncpush doctor``, and its checks by name."""
    ran = await run_beside("doctor", *words, "--output", "json", **environment(url, **changed))
    return ran.status, checks_of(ran)


def checks_of(ran: Ran) -> dict[str, dict[str, Any]]:
    document = json.loads(ran.out)
    checks = [check for section in document["sections"] for check in section["checks"]]
    statuses = [check["status"] for check in checks]
    assert document["totals"] == {name: statuses.count(name) for name in ("ok", "note", "unknown", "problem")}
    assert (ran.status == 1) == ("problem" in statuses)
    names = Counter(check["name"] for check in checks)
    assert {name for name, count in names.items() if count > 1} <= {"host", "proxy"}
    return {check["name"]: check for check in checks}


def statuses(checks: dict[str, dict[str, Any]], *but: str) -> dict[str, str]:
    """The checks that are not ok."""
    return {name: check["status"] for name, check in checks.items() if check["status"] != "ok" and name not in but}


@pytest.fixture
async def ecr(emulator: Emulator) -> Any:
    """boto3, and the repository ``team/app``."""
    client = judge(emulator.endpoint_url)
    await to_thread.run_sync(lambda: client.create_repository(repositoryName="team/app"))
    return client


def deny(emulator: Emulator, *operations: str) -> None:
    emulator.fault_config = FaultConfig(faults=tuple(parse_fault(f"{each}:access-denied") for each in operations))


async def test_a_good_set_up_is_ok_and_nothing_is_changed(emulator: Emulator, ecr: Any) -> None:
    status, checks = await examined(emulator.endpoint_url, "team/app")

    assert (status, statuses(checks)) == (0, {})
    assert {name.removeprefix("ecr:") for name in checks if name.startswith("ecr:")} == set(PUSH)
    assert "the environment" in checks["credentials"]["message"]
    [repository] = (await to_thread.run_sync(ecr.describe_repositories))["repositories"]
    assert repository["repositoryName"] == "team/app"
    assert (await to_thread.run_sync(lambda: ecr.describe_images(repositoryName="team/app")))["imageDetails"] == []
    assert repository["registryId"] in checks["account"]["message"]


RESTRICTED = tuple(name for name, status in PUSH.items() if status == "note")
REQUIRED = tuple(name for name, status in PUSH.items() if status == "problem")


@pytest.mark.parametrize("denied", [RESTRICTED, *((name,) for name in REQUIRED)], ids="+".join)
async def test_denied_actions_are_named_as_a_push_meets_them(
    emulator: Emulator, ecr: Any, tmp_path: Path, denied: tuple[str, ...]
) -> None:
    app_layout().write(tmp_path / "app")
    deny(emulator, *denied)

    exit_status, checks = await examined(emulator.endpoint_url, "team/app")
    pushed = await run_beside("push", tmp_path / "app", "team/app", **environment(emulator.endpoint_url))

    without_token = {"/v2/": "unknown"} if "GetAuthorizationToken" in denied else {}
    assert statuses(checks) == {**{f"ecr:{name}": PUSH[name] for name in denied}, **without_token}
    assert all(f"ecr:{name}" in checks[f"ecr:{name}"]["hint"] for name in denied)
    assert (exit_status, pushed.status) == ((1, 4) if denied != RESTRICTED else (0, 0))


@pytest.mark.parametrize(
    ("host", "advice"),
    [
        ("", "give --region cn-northwest-1"),
        (
            "000000000000.dkr.ecr.cn-north-1.amazonaws.com.cn/",
            "write 000000000000.dkr.ecr.cn-northwest-1.amazonaws.com.cn",
        ),
    ],
)
async def test_a_missing_repository_is_looked_for_in_other_regions(emulator: Emulator, host: str, advice: str) -> None:
    """China's partition has two regions only."""
    client = judge_in(emulator.endpoint_url, "cn-northwest-1")
    await to_thread.run_sync(lambda: client.create_repository(repositoryName="team/app"))

    status, checks = await examined(emulator.endpoint_url, f"{host}team/app", AWS_REGION="cn-north-1")

    assert status == 1
    assert "team/app does not exist (region cn-north-1)" in checks["repositories"]["message"]
    assert checks["other regions"]["message"] == "team/app exists in cn-northwest-1"
    assert checks["other regions"]["hint"].endswith(advice)
    assert checks["permissions"]["status"] == "unknown"


async def test_no_check_lets_a_creation_template_create_anything(tmp_path: Path) -> None:
    async with Emulator(tmp_path, fsync=False, quirks=Quirks(create_on_initiate="template")) as emulator:
        client = judge(emulator.endpoint_url)
        await to_thread.run_sync(
            lambda: client.create_repository_creation_template(prefix="ROOT", appliedFor=["CREATE_ON_PUSH"])
        )
        for denied in ((), ("DescribeRepositories",), ("DescribeRepositories", "BatchCheckLayerAvailability")):
            deny(emulator, *denied)
            _, checks = await examined(emulator.endpoint_url, "team/app", "--for", "migrate", "--create-repository")
            assert checks["permissions"]["status"] == "unknown"
        deny(emulator)
        assert (await to_thread.run_sync(client.describe_repositories))["repositories"] == []


async def test_without_region_and_credentials_both_are_named(tmp_path: Path) -> None:
    gone = {"AWS_REGION": "", "AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}
    status, checks = await examined("http://127.0.0.1:9", "team/app", **gone)

    assert status == 1
    assert statuses(checks) == {"credentials": "problem", "region": "problem", "permissions": "unknown"}
    assert "AWS_REGION" in checks["region"]["hint"]
    assert "AWS_PROFILE" in checks["credentials"]["hint"]


async def test_expired_credentials_are_the_only_problem(emulator: Emulator, ecr: Any) -> None:
    emulator.fault_config = FaultConfig(faults=(parse_fault("*:expired-token"),))

    _, checks = await examined(emulator.endpoint_url, "team/app")

    assert statuses(checks) == {"credentials": "problem", "permissions": "unknown"}
    assert "ExpiredTokenException" in checks["credentials"]["message"]
    assert "renew" in checks["credentials"]["hint"]


async def test_a_profile_says_how_long_its_credentials_last(emulator: Emulator, ecr: Any, tmp_path: Path) -> None:
    until = datetime.now(UTC) + timedelta(minutes=5)
    keys = {"Version": 1, "AccessKeyId": "test", "SecretAccessKey": "test", "Expiration": until.isoformat()}
    (tmp_path / "keys.json").write_text(json.dumps(keys))
    (tmp_path / "config").write_text(f"[profile ci]\ncredential_process = cat {tmp_path / 'keys.json'}\n")

    status, checks = await examined(
        emulator.endpoint_url,
        "team/app",
        "--profile",
        "ci",
        AWS_CONFIG_FILE=str(tmp_path / "config"),
        AWS_ACCESS_KEY_ID="",
        AWS_SECRET_ACCESS_KEY="",
    )

    assert (status, statuses(checks)) == (0, {"credentials": "note"})
    assert "credential_process of profile 'ci'" in checks["credentials"]["message"]
    assert f"until {until:%Y-%m-%dT%H:%M:%SZ}" in checks["credentials"]["message"]


@asynccontextmanager
async def clock_of(emulator: Emulator, ahead: timedelta) -> AsyncIterator[Relay]:
    """The emulator with another time in its answers."""
    async with relay_to(emulator.endpoint_url) as relay:

        async def late(request: web.Request, relay: Relay) -> web.StreamResponse:
            answer = await passed(request, relay)
            answer.headers["Date"] = format_datetime(datetime.now(UTC) + ahead, usegmt=True)
            return answer

        relay.plan("GetAuthorizationToken", *[late] * 9)
        yield relay


async def test_a_clock_that_is_a_bit_wrong_is_a_note(emulator: Emulator, ecr: Any) -> None:
    async with clock_of(emulator, timedelta(minutes=2, seconds=30)) as relay:
        _, checks = await examined(relay.url, "team/app", "--for", "verify")

    assert statuses(checks) == {"clock": "note"}
    assert re.match(r"this machine's clock is 2:[0-9]+ behind the endpoint's", checks["clock"]["message"])


async def test_a_wrong_clock_is_the_cause_that_is_named() -> None:
    async def refuse(request: web.Request, relay: Relay) -> web.StreamResponse:
        wrong = refused("InvalidSignatureException", "Signature expired: 20261129T100000Z is now earlier than ...")
        answer = await wrong(request, relay)
        answer.headers["Date"] = format_datetime(datetime.now(UTC) - timedelta(hours=1), usegmt=True)
        return answer

    async with relay_to(DEAD) as relay:
        relay.plan("GetAuthorizationToken", *[refuse] * 9)
        _, checks = await examined(relay.url, "team/app")

    assert statuses(checks) == {"clock": "problem", "permissions": "unknown"}
    assert "1:00:0" in checks["clock"]["message"]
    assert "ahead of" in checks["clock"]["message"]


async def test_an_endpoint_that_refuses_connections_is_named() -> None:
    status, checks = await examined(DEAD, "team/app")

    assert status == 1
    unknown = dict.fromkeys(("clock", "permissions"), "unknown")
    assert statuses(checks) == {"endpoint": "problem", "host": "problem", **unknown}
    assert DEAD in checks["endpoint"]["message"]
    assert checks["host"]["message"].endswith("can't be reached: Connection refused")
    assert "127.0.0.1:9" in checks["host"]["hint"]


async def test_an_endpoint_that_hangs_hides_no_other_check(monkeypatch: pytest.MonkeyPatch) -> None:
    async with relay_to(DEAD) as relay:
        relay.plan("GetAuthorizationToken", *[hang] * 9)
        subject = Subject.of_registry("push", aws(relay.url), parse_destination("team/app"))
        with anyio.fail_after(30):
            sections = await examine(subject, limit=0.5)

    found = {finding.name: finding for section in sections for finding in section.findings}
    assert found["endpoint"].status == "problem"
    assert [found[name].status for name in ("credentials", "region", "TMPDIR", "host")] == ["ok"] * 4


async def test_a_call_that_hangs_or_lacks_its_key_leaves_the_others(emulator: Emulator, ecr: Any) -> None:
    async with relay_to(emulator.endpoint_url) as relay:
        relay.plan("PutImage", *[hang] * 9)
        relay.plan("InitiateLayerUpload", *[refused("KmsException", kmsError="AccessDeniedException")] * 9)
        subject = Subject.of_registry("push", aws(relay.url), parse_destination("team/app"))
        sections = await examine(subject, limit=2.0)

    found = {finding.name: finding.status for section in sections for finding in section.findings}
    others = {name: status for name, status in found.items() if status != "ok"}
    assert others == {"ecr:PutImage": "unknown", "ecr:InitiateLayerUpload": "problem"}


async def test_a_check_that_crashes_or_hangs_is_a_finding() -> None:
    async def crash() -> list[Finding]:
        raise ValueError("a bug")

    async def wait() -> list[Finding]:
        await anyio.sleep_forever()
        return []

    async def work() -> list[Finding]:
        return [Finding("third", "ok", "fine")]

    found = await run_checks([Check("first", crash), Check("second", wait), Check("third", work)], 0.2)

    assert [(each.name, each.status) for each in found] == [
        ("first", "problem"),
        ("second", "problem"),
        ("third", "ok"),
    ]
    assert "a bug" in found[0].text


async def test_a_proxy_that_refuses_is_named_without_its_password() -> None:
    proxied = environment("", NO_PROXY="", no_proxy="", HTTPS_PROXY="http://user:pass-word@127.0.0.1:9")
    ran = await run_beside("doctor", "123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn/team/app", **proxied)

    assert ran.status == 1
    [proxy] = [line for line in ran.out.splitlines() if line.startswith("problem  proxy: ")]
    assert "127.0.0.1:9" in proxy
    assert "check HTTPS_PROXY" in proxy
    assert "problem  endpoint: " in ran.out
    assert "pass-word" not in ran.out + ran.err
    hosts = re.findall(r"^ok       host: (\S+):443 .* goes through the proxy$", ran.out, flags=re.MULTILINE)
    assert hosts == ["api.ecr.cn-north-1.amazonaws.com.cn", "123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn"]


@pytest.mark.parametrize("address", ["http://proxy:99999", "http://[::1"])
async def test_a_proxy_that_is_not_an_address_is_named(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("HTTPS_PROXY", address)

    [found] = await check_proxies()

    assert (found.status, found.text) == ("problem", "HTTPS_PROXY is not an address")


async def test_v2_is_a_problem_only_where_the_transport_needs_it(emulator: Emulator, ecr: Any) -> None:
    emulator.fault_config = FaultConfig(faults=(parse_fault("v2:GET-base:unauthorized"),))

    _, optional = await examined(emulator.endpoint_url, "team/app")
    _, needed = await examined(emulator.endpoint_url, "team/app", "--transport", "v2")

    assert statuses(optional) == {"/v2/": "note"}
    assert statuses(needed) == {"/v2/": "problem"}


async def test_an_endpoint_that_fails_is_a_problem(emulator: Emulator, ecr: Any) -> None:
    emulator.fault_config = FaultConfig(faults=(parse_fault("*:server-error"),))

    _, checks = await examined(emulator.endpoint_url, "team/app")

    assert statuses(checks) == {"endpoint": "problem", "permissions": "unknown"}


@pytest.mark.parametrize(
    ("answer", "status", "message"),
    [
        ({"Quota": {"Value": 50.0}}, "note", "50 PutImage, 50 InitiateLayerUpload, 50 UploadLayerPart"),
        ({"__type": "NoSuchResourceException"}, "ok", "10 PutImage, 100 InitiateLayerUpload, 500 UploadLayerPart"),
        ({"__type": "AccessDeniedException"}, "unknown", "AWS's defaults are 10 PutImage"),
    ],
)
async def test_quotas_are_the_account_s_own_where_service_quotas_tells(
    emulator: Emulator, ecr: Any, answer: dict[str, Any], status: str, message: str
) -> None:
    async def quotas(request: web.Request, relay: Relay) -> web.StreamResponse:
        return web.json_response(answer, status=400 if "__type" in answer else 200)

    async with relay_to(DEAD) as relay:
        relay.plan("GetServiceQuota", *[quotas] * 9)
        _, checks = await examined(emulator.endpoint_url, "team/app", AWS_ENDPOINT_URL_SERVICE_QUOTAS=relay.url)

    assert statuses(checks) == ({} if status == "ok" else {"quotas": status})
    assert message in checks["quotas"]["message"]


async def test_the_keys_of_an_emulator_do_not_go_to_service_quotas(emulator: Emulator, ecr: Any) -> None:
    _, checks = await examined(emulator.endpoint_url, "team/app")

    assert "this is not AWS" in checks["quotas"]["message"]


async def test_something_else_at_the_endpoint_is_named(emulator: Emulator) -> None:
    async def portal(request: web.Request, relay: Relay) -> web.StreamResponse:
        return web.Response(text="<html>Log in to the hotel</html>", content_type="text/html")

    async with relay_to(DEAD) as relay:
        relay.plan("GetAuthorizationToken", *[portal] * 9)
        _, checks = await examined(relay.url, "team/app")

    assert checks["endpoint"]["status"] == "problem"
    assert "not an answer from ECR" in checks["endpoint"]["message"]


async def test_another_account_and_its_missing_repository_are_named(emulator: Emulator, ecr: Any) -> None:
    there = f"210987654321.dkr.ecr.{REGION}.amazonaws.com/team/app"
    _, checks = await examined(emulator.endpoint_url, there, "--for", "migrate", "--create-repository")

    assert checks["account"]["status"] == "note"
    assert "belongs to 210987654321, and the caller to 000000000000" in checks["account"]["message"]
    assert "team/app" in checks["repositories"]["message"]
    assert "missing" in checks["repositories"]["message"]
    assert checks["BLOB_MOUNTING"]["status"] == "unknown"


async def test_public_registries_get_the_checks_that_apply(emulator: Emulator) -> None:
    client = judge(emulator.endpoint_url, "ecr-public")
    await to_thread.run_sync(lambda: client.create_repository(repositoryName="app"))

    status, checks = await examined(emulator.endpoint_url, "public.ecr.aws/000000000000/app")

    assert (status, statuses(checks)) == (0, {})
    assert "ecr-public:DescribeImages" in checks
    assert "ecr-public:BatchGetImage" not in checks
    status, checks = await examined(emulator.endpoint_url, "public.ecr.aws/000000000000/app", "--for", "verify")
    assert (status, statuses(checks)) == (1, {"task": "problem"})


async def test_a_plan_is_checked_from_sources_to_targets(here: Bench) -> None:
    here.hold("base", "1.0", b"layer")
    plan = here.plan({"from": "base", "to": "team/base", "tags": {"names": ["1.0"]}})

    status, checks = await examined(here.emulator.endpoint_url, plan)

    source = checks[f"source {here.source.host}"]
    assert status == 0
    assert statuses(checks) == {
        "BLOB_MOUNTING": "note",
        "permissions": "unknown",
        "ecr:DescribeRepositories": "unknown",
    }
    assert source["message"] == "base:1.0 can be read without a login"
    assert [seen.method for seen in here.source.seen] == ["HEAD"]
    assert "will be created" in checks["repositories"]["message"]
    assert "plan.journal" in checks["journal"]["message"]
    hosts = (await run_beside("doctor", plan, **environment(""))).out
    assert f"{here.source.host} (source {here.source.host})" in hosts


async def test_a_plan_that_chooses_is_checked_by_the_lists_that_it_chooses_from(here: Bench, ecr: Any) -> None:
    here.hold("base", "1.0", b"layer")
    own = here.emulator.endpoint_url.removeprefix("http://")
    plan = here.plan(
        images=[
            {"from": f"{here.source.host}/base", "to": "team/base", "tags": {"glob": "1.*"}},
            {"from": f"{own}/team/*", "to": "mirror/{name}"},
        ],
        registries={
            own: {"plain_http": True, "credentials": {"ecr": {"region": REGION}}},
            here.source.host: {"plain_http": True},
        },
    )

    _, checks = await examined(here.emulator.endpoint_url, plan)

    assert "team/base" in checks["repositories"]["message"], "the placeholder is the name of none"
    assert checks[f"source {here.source.host}"]["message"] == "the tags of base can be listed without a login: 1"
    assert "1 of the 1 repository that it lists by ECR's API match team/*" in checks[f"source {own}"]["message"]


async def test_a_login_that_a_source_refuses_is_a_problem(here: Bench) -> None:
    here.hold("base", "1.0", b"layer")

    @here.source.rule("HEAD", "/manifests/")
    async def _refuse(request: web.Request) -> web.StreamResponse | None:
        if request.headers.get("Authorization") == basic("user", "right"):
            return None
        return refusal(401, "UNAUTHORIZED", "wrong password", **{"WWW-Authenticate": 'Basic realm="here"'})

    def plan(password: str) -> Path:
        login = {"plain_http": True, "credentials": {"username": "user", "password": f"${{{password}}}"}}
        image = {"from": "base", "to": "team/base", "tags": {"names": ["1.0"]}}
        return here.plan(image, registries={here.source.host: login})

    secrets = {"RIGHT": "right", "WRONG": "wrong-one"}
    _, bad = await examined(here.emulator.endpoint_url, plan("WRONG"), **secrets)
    _, good = await examined(here.emulator.endpoint_url, plan("RIGHT"), **secrets)

    name = f"source {here.source.host}"
    assert bad[name]["status"] == "problem"
    assert "user" in bad[name]["message"]
    assert "wrong-one" not in json.dumps(bad)
    assert good[name]["status"] != "problem"


async def test_a_directory_that_takes_no_files_is_a_problem(
    here: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = here.plan({"from": "base", "to": "team/base"})

    _, checks = await examined(here.emulator.endpoint_url, plan, "--journal", tmp_path / "gone" / "plan.journal")

    assert checks["journal"]["status"] == "problem"
    assert "No such file" in checks["journal"]["message"]
    assert "--journal" in checks["journal"]["hint"]


class Terminal(io.StringIO):
    """A terminal, as far as a command can tell."""

    def isatty(self) -> bool:
        return True


def at_terminal(*words: str, **variables: str) -> list[str]:
    """The lines that a command shows at a terminal."""
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(Terminal()) as shown:
        for name, value in variables.items():
            patch.setenv(name, value)
        run_app(words)
    return shown.getvalue().splitlines()


async def test_a_terminal_of_eighty_columns_shows_every_line(emulator: Emulator, ecr: Any) -> None:
    deny(emulator, "PutImage")
    variables = environment(emulator.endpoint_url, COLUMNS="80", NO_COLOR="1")
    lines = await to_thread.run_sync(lambda: at_terminal("doctor", "team/app", **variables))

    assert max(map(len, lines)) <= 80
    place = next(number for number, line in enumerate(lines) if line.startswith("problem  ecr:PutImage: denied"))
    assert any(line.lstrip().startswith("-> allow ecr:PutImage") for line in lines[place : place + 4])


@pytest.mark.parametrize(("word", "message"), [("plan.yaml", "plan.yaml is not a file"), ("Team/App", "Team/App")])
async def test_a_wrong_argument_is_a_usage_error(word: str, message: str) -> None:
    ran = await run_beside("doctor", word, **environment(DEAD))

    assert (ran.status, ran.out) == (2, "")
    assert message in ran.err
