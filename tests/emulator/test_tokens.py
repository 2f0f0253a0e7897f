"""``/v2/`` opens to the passwords that GetAuthorizationToken gives out, while they last, and to nothing else."""

from __future__ import annotations

import base64
import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from anyio import to_thread
from hypothesis import assume, given
from hypothesis import strategies as st

from asyncpush.emulator import Emulator
from asyncpush.emulator.auth.tokens import ExpiredTokenError, InvalidTokenError, Tokens
from asyncpush.errors import UsageError
from support.aws import REGION, token
from support.commands import Server, cli_environment
from support.emulator_client import Ecr

TOKENS = Tokens(b"a secret", 24 * 60 * 60)
GIVEN = TOKENS.grant("123456789012").text


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Any
    body: bytes

    @property
    def code(self) -> str:
        [error] = json.loads(self.body)["errors"]
        return error["code"]


async def ask(emulator: Emulator, authorization: str | None, path: str = "/v2/", method: str = "GET") -> Reply:
    headers = {} if authorization is None else {"Authorization": authorization}
    async with (
        aiohttp.ClientSession(emulator.endpoint_url, headers=headers) as http,
        http.request(method, path) as response,
    ):
        return Reply(response.status, response.headers, await response.read())


async def given_by(emulator: Emulator) -> str:
    return f"Basic {await to_thread.run_sync(token, emulator.endpoint_url)}"


def basic(user: str, secret: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{secret}".encode()).decode()


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Basic", "Basic !", "Basic QVdTOng=", "Bearer QVdTOng=", "Basic /w==", basic("AWS", "a.b"), "Basic é"],
)
@pytest.mark.parametrize("path", ["", "app/manifests/v1", "app/blobs/sha256:0", "app/tags/list", "absent", "_catalog"])
async def test_without_a_password_of_its_own_nothing_is_told(
    emulator: Emulator, authorization: str | None, path: str
) -> None:
    reply = await ask(emulator, authorization, f"/v2/{path}")

    assert (reply.status, reply.code) == (401, "UNAUTHORIZED")
    realm = f'realm="http://{emulator.host}:{emulator.port}/"'
    assert reply.headers["WWW-Authenticate"] == f'Basic {realm},service="ecr.amazonaws.com"'
    assert reply.headers["Docker-Distribution-Api-Version"] == "registry/2.0"


async def test_a_push_is_not_let_in_either(emulator: Emulator) -> None:
    assert (await ask(emulator, None, "/v2/app/blobs/uploads/", "POST")).status == 401
    assert (await ask(emulator, await given_by(emulator), "/v2/app/blobs/uploads/", "POST")).status != 401


@pytest.mark.parametrize("service", ["ecr", "ecr-public"])
async def test_the_password_of_either_service_opens_it(emulator: Emulator, service: str) -> None:
    granted = (await Ecr(emulator.endpoint_url, service=service).call("get_authorization_token"))["authorizationData"]
    grant = granted if service == "ecr-public" else granted[0]
    user, _, secret = base64.b64decode(grant["authorizationToken"]).decode().partition(":")

    assert user == "AWS"
    assert (await ask(emulator, basic("AWS", secret))).status == 200
    assert (await ask(emulator, basic("aws", secret))).status == 401


async def test_a_password_ends_when_it_says(tmp_path: Path) -> None:
    async with Emulator(tmp_path, fsync=False, token_lifetime=-1) as emulator:
        reply = await ask(emulator, await given_by(emulator))

    assert (reply.status, reply.code) == (403, "DENIED")
    assert "Your authorization token has expired. Reauthenticate and try again." in reply.body.decode()
    assert "WWW-Authenticate" not in reply.headers


async def test_a_password_lasts_twelve_hours_unless_told_otherwise(emulator: Emulator) -> None:
    before = time.time()
    [grant] = (await Ecr(emulator.endpoint_url).call("get_authorization_token"))["authorizationData"]

    assert 12 * 3600 - 1 <= grant["expiresAt"].timestamp() - before < 12 * 3600 + 60


async def test_a_password_outlives_a_restart_on_the_same_data_and_no_other(tmp_path: Path) -> None:
    async with Emulator(tmp_path / "one", fsync=False) as first:
        given = await given_by(first)
    async with Emulator(tmp_path / "one", fsync=False) as again, Emulator(tmp_path / "two", fsync=False) as other:
        assert (await ask(again, given)).status == 200
        assert (await ask(other, given)).status == 401
    assert (tmp_path / "one" / "token-secret").stat().st_mode & 0o077 == 0


async def test_a_secret_that_was_cut_short_is_made_anew(tmp_path: Path) -> None:
    async with Emulator(tmp_path, fsync=False):
        pass
    (tmp_path / "token-secret").write_bytes(b"")
    async with Emulator(tmp_path, fsync=False) as emulator:
        assert (await ask(emulator, await given_by(emulator))).status == 200
    (tmp_path / "token-secret").unlink()
    (tmp_path / "token-secret").mkdir()
    with pytest.raises(UsageError, match="token-secret can't be used: Is a directory"):
        async with Emulator(tmp_path, fsync=False):
            pass


async def test_with_verification_off_nobody_is_asked(tmp_path: Path) -> None:
    async with Emulator(tmp_path, fsync=False, verify_signatures=False) as emulator:
        for authorization in (None, "Basic QVdTOng=", "Bearer x"):
            assert (await ask(emulator, authorization)).status == 200


@given(st.data())
def test_only_what_was_given_out_is_a_token(data: st.DataObject) -> None:
    decoded = base64.b64decode(GIVEN)
    position = data.draw(st.integers(0, len(decoded) - 1))
    changed = decoded[:position] + data.draw(st.binary(max_size=2)) + decoded[position + 1 :]
    assert TOKENS.check(GIVEN) == "123456789012"
    assume(changed != decoded)
    for text in (base64.b64encode(changed).decode(), data.draw(st.text())):
        with pytest.raises(InvalidTokenError):
            TOKENS.check(text)
    with pytest.raises(InvalidTokenError):
        Tokens(b"another secret", 60).check(GIVEN)
    with pytest.raises(ExpiredTokenError):
        TOKENS.check(Tokens(b"a secret", 0).grant("123456789012").text)


def test_skopeo_logs_in_with_what_the_aws_cli_gives(
    server: Server, need: Callable[[str], str], skopeo: str, tmp_path: Path
) -> None:
    aws, authority = need("aws"), server.url.removeprefix("http://")
    environment = cli_environment(
        **server.environment, AWS_DEFAULT_REGION=REGION, REGISTRY_AUTH_FILE=str(tmp_path / "auth.json")
    )

    def run(*words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(words, input=stdin, capture_output=True, text=True, check=False, env=environment)

    inspect = (skopeo, "inspect", "--raw", "--tls-verify=false", f"docker://{authority}/login/app:1")
    login = (skopeo, "login", "--tls-verify=false", "--username", "AWS", "--password-stdin", authority)
    before = run(*inspect)
    given = run(aws, "ecr", "get-login-password")
    assert given.returncode == 0, given.stderr
    wrong = run(*login, stdin="wrong")
    right = run(*login, stdin=given.stdout)
    after = run(*inspect)

    assert "unauthorized" in before.stderr
    assert "invalid username/password" in wrong.stderr
    assert (right.returncode, right.stdout) == (0, "Login Succeeded!\n"), right.stderr
    assert "The repository with name 'login/app' does not exist in the registry with id" in after.stderr
