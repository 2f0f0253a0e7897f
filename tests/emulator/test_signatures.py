"""The emulator believes the signatures that botocore's signer makes with keys that it knows, and no others."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote, urlsplit

import aiohttp
import pytest
from anyio import to_thread
from botocore import UNSIGNED
from botocore.auth import SIGNED_HEADERS_BLACKLIST, SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials as BotocoreCredentials
from hypothesis import assume, given
from hypothesis import strategies as st

from asyncpush.emulator import Emulator, KnownCredentials
from asyncpush.emulator.auth.sigv4 import SignedRequest, verify
from asyncpush.emulator.errors import AwsError
from support.aws import REGION
from support.commands import Ran, Server, cli_environment
from support.emulator_client import Ecr, part

TARGET = "AmazonEC2ContainerRegistry_V20150921"
KEY = KnownCredentials("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY")
LENT = KnownCredentials("ASIAEXAMPLE", "secret", "a token", datetime(2100, 1, 1, tzinfo=UTC))
ENDED = replace(LENT, access_key_id="ASIAENDED", expires=datetime(2020, 1, 1, tzinfo=UTC))
KEYS = {entry.access_key_id: entry for entry in (KEY, LENT)}
HEADERS = (("X-Amz-Target", f"{TARGET}.DescribeRepositories"), ("Content-Type", "application/x-amz-json-1.1"))


@dataclass(frozen=True)
class Signed:
    """A request that botocore has signed, as a server receives it; and when that was."""

    request: SignedRequest
    body: bytes
    at: datetime

    def with_header(self, name: str, value: str | None) -> Signed:
        kept = [entry for entry in self.request.headers if entry[0].decode().lower() != name]
        added = [] if value is None else [(name.encode(), value.encode())]
        return replace(self, request=replace(self.request, headers=kept + added))

    def header(self, name: str) -> str:
        return next(value.decode() for key, value in self.request.headers if key.decode().lower() == name)


def sign(
    body: bytes = b"{}",
    *,
    key: KnownCredentials = KEY,
    region: str = "eu-west-1",
    service: str = "ecr",
    target: str = "/",
    host: str = "localhost:4510",
    headers: Sequence[tuple[str, str]] = HEADERS,
    method: str = "POST",
) -> Signed:
    request = AWSRequest(method, f"http://{host}{target}", data=body)
    for name, value in headers:
        request.headers.add_header(name, value)
    secrets = BotocoreCredentials(key.access_key_id, key.secret_access_key, key.session_token)
    SigV4Auth(secrets, service, region).add_auth(request)
    sent = [(name.encode(), value.encode()) for name, value in request.headers.items()]
    url = urlsplit(request.url)
    at = datetime.strptime(request.headers["X-Amz-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    return Signed(SignedRequest(method, url.path, url.query, [(b"Host", host.encode()), *sent]), body, at)


def judged(signed: Signed, *, now: datetime | None = None, services: Sequence[str] = ("ecr",)) -> KnownCredentials:
    return verify(signed.request, signed.body, keys=KEYS, services=services, now=now or signed.at)


def refused(signed: Signed, *, now: datetime | None = None) -> AwsError:
    with pytest.raises(AwsError) as caught:
        judged(signed, now=now)
    assert caught.value.status == 400
    return caught.value


APART = {*SIGNED_HEADERS_BLACKLIST, "authorization", "host", "date", "x-amz-date", "x-amz-security-token"}
names = st.from_regex(r"[A-Za-z][A-Za-z0-9-]{0,15}", fullmatch=True).filter(
    lambda name: name.lower() not in APART | {"x-amz-content-sha256"}
)
values = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20) | st.text(" \ta", max_size=9)
words = st.text(st.characters(min_codepoint=33, max_codepoint=0x2FF), max_size=8)
paths = st.lists(st.sampled_from(["", ".", ".."]) | words.map(lambda word: quote(word, safe="~"))).map("/".join)
queries = st.lists(st.tuples(words, words).map(lambda pair: "=".join(quote(word, safe="~") for word in pair)))


@given(
    body=st.binary(max_size=200),
    key=st.sampled_from([KEY, LENT]),
    region=st.from_regex(r"[a-z]{2}(-[a-z]{1,9}){1,2}-[0-9]", fullmatch=True),
    service=st.sampled_from(["ecr", "ecr-public"]),
    target=st.tuples(paths, queries.map("&".join)).map(lambda pair: f"/{pair[0]}?{pair[1]}"),
    headers=st.lists(st.tuples(names, values), max_size=5),
    method=st.sampled_from(["POST", "GET", "PUT"]),
)
def test_what_botocore_has_signed_is_believed(
    body: bytes,
    key: KnownCredentials,
    region: str,
    service: str,
    target: str,
    headers: list[tuple[str, str]],
    method: str,
) -> None:
    signed = sign(body, key=key, region=region, service=service, target=target, headers=headers, method=method)

    assert judged(signed, services=("ecr", "ecr-public")) is key


@given(st.data())
def test_a_signature_covers_every_byte_that_it_names(data: st.DataObject) -> None:
    signed = sign(b'{"registryId": "123456789012"}', target="/a?b=c", key=data.draw(st.sampled_from([KEY, LENT])))
    request = signed.request
    name = data.draw(st.sampled_from(["host", "x-amz-target", "content-type"]))
    value = data.draw(values)
    assume(" ".join(value.split()) != signed.header(name))
    body = data.draw(st.binary(max_size=40))
    assume(body != signed.body)
    changed = data.draw(
        st.sampled_from(
            [
                replace(signed, body=body),
                signed.with_header(name, value),
                signed.with_header(name, None),
                replace(signed, request=replace(request, method="PUT")),
                replace(signed, request=replace(request, path="/b")),
                replace(signed, request=replace(request, query="b=d")),
                signed.with_header("authorization", signed.header("authorization")[:-1] + "g"),
                signed.with_header("authorization", signed.header("authorization").replace("eu-west-1", "eu-west-2")),
            ]
        )
    )

    assert refused(changed).code == "InvalidSignatureException"


def test_another_secret_makes_another_signature() -> None:
    error = refused(sign(key=replace(KEY, secret_access_key="another")))

    assert error.code == "InvalidSignatureException"
    assert error.message.startswith("The request signature we calculated does not match the signature you provided.")


@pytest.mark.parametrize("offset", [-300, -1, 0, 1, 300])
def test_a_signature_is_good_for_five_minutes_either_way(offset: int) -> None:
    signed = sign()

    assert judged(signed, now=signed.at + timedelta(seconds=offset)) is KEY


def test_an_older_one_has_expired_and_a_newer_one_is_not_yet_current() -> None:
    signed = sign()
    late, early = (signed.at + timedelta(seconds=offset) for offset in (301, -301))
    sent, then, now = (f"{at:%Y%m%dT%H%M%SZ}" for at in (signed.at, late - timedelta(minutes=5), late))

    error = refused(signed, now=late)
    assert error.code == "InvalidSignatureException"
    assert error.message == f"Signature expired: {sent} is now earlier than {then} ({now} - 5 min.)"
    error = refused(signed, now=early)
    assert error.code == "InvalidSignatureException"
    assert error.message.startswith(f"Signature not yet current: {sent} is still later than ")


def test_a_session_token_belongs_to_its_key_and_ends() -> None:
    signed = sign(key=LENT)
    assert judged(signed) is LENT
    for other in (sign(key=replace(LENT, session_token="another")), sign(key=replace(LENT, session_token=None))):
        assert refused(other).code == "UnrecognizedClientException"
    assert refused(sign(key=replace(KEY, session_token="a token"))).code == "UnrecognizedClientException"
    assert refused(sign(key=KnownCredentials("AKIDOTHER", "secret"))).code == "UnrecognizedClientException"
    assert refused(signed, now=datetime(2100, 1, 1, tzinfo=UTC)).code == "ExpiredTokenException"


def test_a_token_that_is_not_signed_is_refused() -> None:
    error = refused(sign().with_header("x-amz-meta", "added on the way"))

    assert (error.code, "'x-amz-meta'" in error.message) == ("InvalidSignatureException", True)


AUTHORIZATION = re.compile(
    r"(?P<start>AWS4-HMAC-SHA256) (?P<credential>Credential=.*), (?P<names>Sig.*), (?P<proof>S.*)"
)


@pytest.mark.parametrize(
    ("written", "code", "said"),
    [
        (None, "MissingAuthenticationTokenException", "Missing Authentication Token"),
        ("Basic QVdTOng=", "IncompleteSignatureException", "'Basic'"),
        ("", "IncompleteSignatureException", "algorithm"),
        (r"\g<start>", "IncompleteSignatureException", "missing equal-sign"),
        (r"\g<start> x", "IncompleteSignatureException", "'x' not a valid key=value pair"),
        (r"\g<start> \g<names>, \g<proof>", "IncompleteSignatureException", "requires 'Credential' parameter."),
        (r"\g<start> \g<credential>, \g<proof>", "IncompleteSignatureException", "requires 'SignedHeaders'"),
        (r"\g<start> \g<credential>, \g<names>", "IncompleteSignatureException", "requires 'Signature' parameter."),
        (r"\g<start> Credential=a/b, \g<names>, \g<proof>", "IncompleteSignatureException", "exactly 5"),
        (r"\g<start> \g<credential>,\g<names>,\g<proof>é", "InvalidSignatureException", "does not match"),
    ],
)
def test_an_authorization_that_is_none_is_refused_with_the_reason(written: str | None, code: str, said: str) -> None:
    signed = sign()
    given = None if written is None else AUTHORIZATION.sub(written, signed.header("authorization"))

    error = refused(signed.with_header("authorization", given))

    assert error.code == code
    assert said in error.message


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("/ecr/", "/s3/", "correct service: 'ecr'"),
        ("/ecr/", "/ecr-public/", "correct service: 'ecr'"),
        ("/eu-west-1/", "//", "valid region"),
        ("/eu-west-1/", "/../", "valid region"),
        ("aws4_request", "aws3_request", "valid terminator: 'aws4_request'"),
        ("host;", "", "'host' must be a 'SignedHeader'"),
        ("EXAMPLE/20", "EXAMPLE/19", "Date in Credential scope does not match"),
    ],
)
def test_a_scope_that_is_not_of_this_request_is_refused(before: str, after: str, said: str) -> None:
    signed = sign()

    error = refused(signed.with_header("authorization", signed.header("authorization").replace(before, after)))

    assert (error.code, said in error.message) == ("InvalidSignatureException", True)


@pytest.mark.parametrize(
    "date", [None, "", "yesterday", "20260101", "99999999T999999Z", "Mon, 99 Foo 2026 00:00:00 GMT"]
)
def test_a_date_that_is_none_is_refused(date: str | None) -> None:
    assert refused(sign().with_header("x-amz-date", date)).code == "IncompleteSignatureException"


@pytest.mark.parametrize("written", ["%Y%m%dT%H%M%SZ", "%a, %d %b %Y %H:%M:%S GMT"])
def test_a_date_may_stand_in_the_date_header(written: str) -> None:
    signed = sign()
    dated = signed.with_header("x-amz-date", None).with_header("date", signed.at.strftime(written))

    assert "does not match the signature" in refused(dated).message
    assert "Signature expired" in refused(dated, now=signed.at + timedelta(minutes=6)).message


@given(st.binary(max_size=120).filter(lambda value: b"\n" not in value and b"\r" not in value))
def test_any_authorization_is_refused_in_awss_words(value: bytes) -> None:
    signed = sign()
    headers = [entry for entry in signed.request.headers if entry[0] != b"Authorization"]
    for text in (value, b"AWS4-HMAC-SHA256 " + value):
        request = replace(signed.request, headers=[*headers, (b"Authorization", text)])
        assert refused(replace(signed, request=request)).code.endswith("Exception")


@pytest.fixture
def guarded(tmp_path: Path) -> Emulator:
    return Emulator(tmp_path / "ecr", fsync=False, credentials=[KEY, LENT, ENDED])


@pytest.mark.parametrize("service", ["ecr", "ecr-public"])
async def test_boto3_is_let_in_with_keys_that_are_known_only(guarded: Emulator, service: str) -> None:
    async with guarded as emulator:
        for key in (KEY, LENT):
            keys = (key.access_key_id, key.secret_access_key, key.session_token)
            client = Ecr(emulator.endpoint_url, service=service, keys=keys)
            assert (await client.call("describe_repositories"))["repositories"] == []
        for keys, code in (
            ((KEY.access_key_id, "wrong", None), "InvalidSignatureException"),
            (("test", "test", None), "UnrecognizedClientException"),
            ((LENT.access_key_id, LENT.secret_access_key, "wrong"), "UnrecognizedClientException"),
            ((ENDED.access_key_id, ENDED.secret_access_key, ENDED.session_token), "ExpiredTokenException"),
        ):
            refusal = await Ecr(emulator.endpoint_url, service=service, keys=keys).refused("describe_repositories")
            assert (refusal.code, refusal.status) == (code, 400)
        unsigned = Ecr(emulator.endpoint_url, service=service, signature_version=UNSIGNED)
        assert (await unsigned.refused("describe_repositories")).code == "MissingAuthenticationTokenException"


async def test_nothing_happens_without_a_signature(guarded: Emulator) -> None:
    async with guarded as emulator:
        keys = (KEY.access_key_id, KEY.secret_access_key, None)
        unsigned = Ecr(emulator.endpoint_url, signature_version=UNSIGNED)
        for operation in ("create_repository", "start_image_scan"):
            assert (
                await unsigned.refused(operation, repositoryName="app")
            ).code == "MissingAuthenticationTokenException"
        client = Ecr(emulator.endpoint_url, keys=keys)
        await client.call("create_repository", repositoryName="app")
        upload_id = await client.begin("app")
        large = part("app", upload_id, 0, bytes(8 * 2**20))
        assert (await unsigned.refused("upload_layer_part", **large)).code == "MissingAuthenticationTokenException"
        assert await client.send("app", upload_id, 0, bytes(8 * 2**20)) == 8 * 2**20 - 1


@pytest.mark.parametrize("size", [100, 10 * 2**20])
async def test_a_body_that_was_changed_on_the_way_is_refused(guarded: Emulator, size: int) -> None:
    async with guarded as emulator, aiohttp.ClientSession(emulator.endpoint_url) as http:
        body = json.dumps({"repositoryNames": ["app"], "ignored": "x" * size}).encode()
        signed = sign(body, host=f"{emulator.host}:{emulator.port}")
        headers = [(name.decode(), value.decode()) for name, value in signed.request.headers]
        for sent, code in (
            (body, "RepositoryNotFoundException"),
            (body.replace(b"xxx", b"xyx", 1), "InvalidSignatureException"),
        ):
            async with http.post("/", data=sent, headers=headers) as response:
                assert (await response.json(content_type=None))["__type"] == code
        late = signed.with_header("x-amz-date", f"{signed.at - timedelta(minutes=6):%Y%m%dT%H%M%SZ}").request.headers
        async with http.post(
            "/", data=body, headers=[(name.decode(), value.decode()) for name, value in late]
        ) as late_:
            document = await late_.json(content_type=None)
        assert document["message"].startswith("Signature expired: ")


async def test_with_verification_off_any_key_will_do_and_none(tmp_path: Path) -> None:
    async with Emulator(tmp_path, fsync=False, verify_signatures=False, credentials=[]) as emulator:
        for client in (
            Ecr(emulator.endpoint_url, keys=("any", "thing", None)),
            Ecr(emulator.endpoint_url, signature_version=UNSIGNED),
        ):
            assert (await client.call("describe_repositories"))["repositories"] == []


def test_the_aws_cli_says_in_one_line_why_it_is_not_let_in(server: Server, need: Callable[[str], str]) -> None:
    aws = need("aws")

    def ecr(*words: str, **environment: str) -> Ran:
        merged = cli_environment(**{**server.environment, "AWS_DEFAULT_REGION": REGION, **environment})
        done = subprocess.run([aws, "ecr", *words], capture_output=True, text=True, check=False, env=merged, timeout=60)
        return Ran(done.returncode, done.stdout, done.stderr)

    for words, environment, code in (
        (("describe-repositories",), {"AWS_SECRET_ACCESS_KEY": "wrong"}, "InvalidSignatureException"),
        (("describe-repositories", "--no-sign-request"), {}, "MissingAuthenticationTokenException"),
        (
            ("start-image-scan", "--repository-name", "app", "--image-id", "imageTag=v1"),
            {},
            "NotImplementedException",
        ),
    ):
        ran = ecr(*words, **environment)
        assert ran.status in (254, 255)
        assert f"An error occurred ({code}) when calling" in ran.err
        assert "max retries" not in ran.err
        assert len(ran.err.strip().splitlines()) == 1


async def test_asyncpush_says_why_it_is_not_let_in(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "layer"
    file.write_bytes(b"layer")
    words = ["layers", file, "--repository-name", "signatures/app", "--create-repository"]
    ran = await to_thread.run_sync(lambda: server.run(*words, AWS_SECRET_ACCESS_KEY="wrong"))
    assert (ran.status, ran.out) == (4, "")
    assert "InvalidSignatureException" in ran.err
    assert "Traceback" not in ran.err
