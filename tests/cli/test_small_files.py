"""Files and programs that users name, and that have no end or no writer: an error in one line, and no hang."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from asyncpush.processes import MAX_OUTPUT, run_small
from support.aws import REGION
from support.commands import Server, run_here

KEYS = {
    "AWS_REGION": REGION,
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_ENDPOINT_URL_ECR": "https://127.0.0.1:9",
    "AWS_MAX_ATTEMPTS": "1",
}
SOURCE = "docker://127.0.0.1:9/team/app:1"

#: Where a file is named: the words of a command, and its environment.
PLACES: dict[str, Callable[[Path], tuple[list[str | Path], dict[str, str]]]] = {
    "fault_config": lambda path: (["serve", "--fault-config", path], {}),
    "credentials": lambda path: (["serve", "--credentials", path], {}),
    "serve's certificate": lambda path: (["serve", "--tls-cert", path], {}),
    "a source's authorities": lambda path: (["push", SOURCE, "team/app:1", "--src-ca-bundle", path], {}),
    "a source's certificate": lambda path: (["push", SOURCE, "team/app:1", "--src-cert", path], {}),
    "AWS's authorities": lambda path: (["layers", __file__, "--repository-name", "aa"], {"AWS_CA_BUNDLE": str(path)}),
    "a document": lambda path: (["ecr", "put-image", "--cli-input-json", f"file://{path}"], {}),
    "a token": lambda path: (
        ["ecr", "describe-repositories"],
        {
            "AWS_ACCESS_KEY_ID": "",
            "AWS_SECRET_ACCESS_KEY": "",
            "AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/x",
            "AWS_WEB_IDENTITY_TOKEN_FILE": str(path),
        },
    ),
    "a container's token": lambda path: (
        ["ecr", "describe-repositories"],
        {
            "AWS_ACCESS_KEY_ID": "",
            "AWS_SECRET_ACCESS_KEY": "",
            "AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://127.0.0.1:1/credentials",
            "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": str(path),
        },
    ),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_file_without_an_end_or_a_writer_is_an_error(
    place: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path("/dev/zero")
    if kind == "pipe":
        os.mkfifo(path := tmp_path / "pipe")
        monkeypatch.setattr("asyncpush.files.PIPE_TIMEOUT", 0.1)
        monkeypatch.setattr("asyncpush.awscli.values.PIPE_TIMEOUT", 0.1)
    words, environment = PLACES[place](path)
    ran = run_here(*words, **{**KEYS, **environment})

    assert ran.status in (1, 2, 252, 255)
    assert ran.out == ""
    assert ran.err.strip().count("\n") == 0
    assert str(path) in ran.err
    assert ("it is a pipe that nobody writes into" if kind == "pipe" else "it is not a file") in ran.err


def test_certificates_come_through_a_pipe(tmp_path: Path) -> None:
    """What a shell's ``<(...)`` names is read once, however often it is needed."""
    os.mkfifo(path := tmp_path / "pipe")
    writer = threading.Thread(target=path.write_bytes, args=(b"no certificate",))
    writer.start()
    ran = run_here("push", SOURCE, "team/app:1", "--src-ca-bundle", path, **KEYS)
    writer.join()

    assert f"{path} can't be used for TLS" in ran.err
    assert "pipe that nobody" not in ran.err


def test_a_credential_process_that_prints_without_end_is_ended(tmp_path: Path) -> None:
    (tmp_path / "config").write_text("[default]\ncredential_process = yes secret\n")
    keys = {"AWS_CONFIG_FILE": str(tmp_path / "config"), "AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}
    ran = run_here("ecr", "describe-repositories", **{**KEYS, **keys})

    assert ran.status == 255
    assert "custom-process: its output is too large for credentials" in ran.err


async def test_a_program_s_output_is_bounded_and_its_input_is_given() -> None:
    ended = await run_small(["sh", "-c", "cat; echo said >&2; exit 3"], b"given")
    assert (ended.status, ended.output, ended.errors, ended.is_too_long) == (3, b"given", b"said\n", False)
    endless = await run_small(["yes"])
    assert (endless.status, len(endless.output), endless.is_too_long) == (-9, MAX_OUTPUT, True)
    loud = await run_small(["sh", "-c", "yes | head -c 3000000 >&2; echo done"])
    assert (loud.status, loud.output, len(loud.errors), loud.is_too_long) == (0, b"done\n", MAX_OUTPUT, False)


def test_a_list_of_failures_goes_into_no_pipe_that_nobody_reads(tmp_path: Path, server: Server) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "list").write_text(f"oci:{tmp_path}/empty team/nothing:1\n")
    os.mkfifo(path := tmp_path / "pipe")
    ran = run_here("migrate", tmp_path / "list", "--no-resume", "--failed-out", path, **server.environment)

    assert ran.status == 1
    assert f"error: {path} can't be written: " in ran.err
    assert "give --failed-out another file" in ran.err
