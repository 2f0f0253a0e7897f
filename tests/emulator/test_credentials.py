"""The emulator's keys: given by a program, or read from the file where AWS tools keep theirs."""

from __future__ import annotations

import itertools
import os
import re
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest
from botocore.exceptions import ClientError
from hypothesis import given
from hypothesis import strategies as st

from asyncpush.cli.serve import exposure
from asyncpush.emulator import Emulator, KnownCredentials
from asyncpush.emulator.auth.credentials import read_credentials
from asyncpush.errors import UsageError
from support.aws import judge
from support.commands import cli_environment, run_cli

FILE = """\
# as written by hand
[default]
aws_access_key_id = AKIDONE
aws_secret_access_key=a%secret/with=signs
account = 111122223333

[role without keys]
role_arn = arn:aws:iam::123456789012:role/deploy

[temporary]
aws_access_key_id = ASIATWO
aws_secret_access_key = two
aws_session_token = token==
aws_account_id = 444455556666

[plain]
aws_access_key_id = AKIDTHREE
aws_secret_access_key = three
"""


def test_every_profile_with_keys_is_read(tmp_path: Path) -> None:
    (tmp_path / "credentials").write_text(FILE)

    assert read_credentials(tmp_path / "credentials") == (
        KnownCredentials("AKIDONE", "a%secret/with=signs", account="111122223333"),
        KnownCredentials("ASIATWO", "two", "token==", account="444455556666"),
        KnownCredentials("AKIDTHREE", "three", account="123456789012"),
    )


SECRET = "dontshowthis"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no profile with aws_access_key_id"),
        ("[role]\nrole_arn = x\n", "has no profile with aws_access_key_id"),
        (f"aws_secret_access_key = {SECRET}\n", "is not a file of AWS credentials: line 1"),
        (f"[a]\naws_access_key_id = x\n{SECRET}\n", "is not a file of AWS credentials: line 3"),
        (f"[a]\nx = 1\nx = {SECRET}\n", "is not a file of AWS credentials: line 3"),
        (f"[a]\naws_secret_access_key = {SECRET}\n", "profile a: credentials need an access key id"),
        ("[a]\naws_access_key_id = x\n", "profile a: credentials need an access key id and a secret"),
        (
            f"[a]\naws_access_key_id = x\naws_secret_access_key = {SECRET}\naccount = 12\n",
            "profile a: invalid account '12'",
        ),
        ("[a]\naws_access_key_id = \xff\n", "is not a file of AWS credentials"),
    ],
)
def test_a_file_without_keys_is_refused_in_one_line_without_its_secrets(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "credentials"
    path.write_text(text, encoding="latin-1")

    with pytest.raises(UsageError) as caught:
        read_credentials(path)

    assert str(caught.value).startswith(str(path))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not any(SECRET in line for line in traceback.format_exception(caught.value))


@given(st.text() | st.binary().map(lambda data: data.decode("latin-1")))
def test_any_text_is_credentials_or_a_usage_error(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "rubbish"
    path.write_text(text + "\n[a]\naws_access_key_id = x\naws_secret_access_key = y\n", errors="surrogatepass")
    with suppress(UsageError):
        assert KnownCredentials("x", "y") in read_credentials(path)


def test_a_file_that_can_not_be_read_ends_the_command_in_one_line(tmp_path: Path) -> None:
    ran = run_cli("serve", "--port", "0", "--credentials", tmp_path / "absent")

    assert (ran.status, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert f"{tmp_path / 'absent'} can't be read: No such file or directory" in ran.err
    with pytest.raises(UsageError, match="can't be read: Is a directory"):
        read_credentials(tmp_path)


def test_contradictory_credentials_are_a_usage_error(tmp_path: Path) -> None:
    twice = [KnownCredentials("a", "one"), KnownCredentials("a", "two")]
    with pytest.raises(UsageError, match="two key pairs have the access key id a"):
        Emulator(tmp_path, credentials=twice)
    with pytest.raises(UsageError, match="there are no credentials"):
        Emulator(tmp_path, credentials=[])
    assert Emulator(tmp_path, credentials=[], verify_signatures=False)
    with pytest.raises(UsageError, match="has no time zone"):
        KnownCredentials("a", "b", expires=datetime(2100, 1, 1))  # noqa: DTZ001
    assert Emulator(tmp_path, credentials=twice[:1] * 2)


def test_secrets_are_not_shown() -> None:
    shown = repr(KnownCredentials("key", SECRET, SECRET, datetime(2100, 1, 1, tzinfo=UTC)))

    assert "key" in shown
    assert SECRET not in shown


@contextmanager
def serving(*options: str | Path) -> Iterator[tuple[str, str]]:
    """The endpoint of ``asyncpush serve``, and what it advises to set."""
    command = [sys.executable, "-m", "asyncpush", "serve", "--port", "0", *map(str, options)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=cli_environment()
    )
    assert process.stdout is not None
    assert process.stderr is not None
    with process.stdout, process.stderr:
        try:
            url = process.stdout.readline().strip().partition("=")[2]
            told = iter(process.stderr.readline, "")
            yield url, "".join(itertools.takewhile(lambda line: "Ctrl-C ends it" not in line, told))
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=20) == 0


def lists(url: str, **keys: str) -> bool:
    try:
        return judge(url, **keys).describe_repositories()["repositories"] == []
    except ClientError as error:
        return error.response["Error"]["Code"] != "UnrecognizedClientException"


def test_a_served_emulator_takes_the_keys_that_it_advises_and_no_others(tmp_path: Path) -> None:
    file = tmp_path / "my credentials"
    file.write_text(FILE)
    test = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
    first = {"aws_access_key_id": "AKIDONE", "aws_secret_access_key": "a%secret/with=signs"}
    second = {"aws_access_key_id": "ASIATWO", "aws_secret_access_key": "two", "aws_session_token": "token=="}

    with serving() as (url, advice):
        assert "AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=test" in advice
        assert [lists(url, **keys) for keys in (test, first, second)] == [True, False, False]
    with serving("--credentials", file) as (url, advice):
        assert re.search(rf"AWS_SHARED_CREDENTIALS_FILE='{re.escape(os.fspath(file))}'", advice)
        assert [lists(url, **keys) for keys in (test, first, second)] == [False, True, True]
    with serving("--no-verify-signatures") as (url, advice):
        assert "Any region and credentials work" in advice
        assert [lists(url, **keys) for keys in (test, first, second)] == [True, True, True]


@pytest.mark.parametrize(
    ("host", "file", "verified", "words"),
    [
        ("127.0.0.1", None, True, None),
        ("::1", None, False, None),
        ("0.0.0.0", Path("keys"), True, None),
        ("0.0.0.0", None, True, "the key test is public"),
        ("10.0.0.5", Path("keys"), False, "requests need no key"),
    ],
)
def test_a_server_that_others_reach_with_a_key_that_all_know_is_a_warning(
    host: str, file: Path | None, verified: bool, words: str | None
) -> None:
    warning = exposure(host, file, verified=verified)

    assert (warning is None) == (words is None)
    assert words is None or words in str(warning)
