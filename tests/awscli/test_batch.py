"""``asyncpush ecr ... --batch`` and ``--layer-file``: many at once, each answered, whatever becomes of the others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from aiohttp import web
from anyio import to_thread
from hypothesis import given
from hypothesis import strategies as st

from asyncpush.awscli.batch_input import BatchInput
from asyncpush.emulator import Emulator, FaultConfig
from asyncpush.emulator.faults import parse_fault, parse_throttle
from support.aws import REGION, judge
from support.aws_cases import upload
from support.commands import Ran, Server, cli_environment, run_cli, run_here
from support.images import digest
from support.servers import serving_http

UNKNOWN = "00000000-0000-4000-8000-000000000000"


def lines(ran: Ran) -> list[dict[str, Any]]:
    return [json.loads(line) for line in ran.out.splitlines()]


def run_batch(server: Server, inputs: bytes, folder: Path, operation: str, *words: str) -> Ran:
    """Run a batch in this process."""
    file = folder / "batch"
    file.write_bytes(inputs)
    return run_here("ecr", operation, "--batch", file, *words, **server.environment)


def completes(url: str, repository: str, count: int) -> list[dict[str, object]]:
    """Inputs for CompleteLayerUpload, each of an upload that has all its bytes."""
    ecr = judge(url)
    ecr.create_repository(repositoryName=repository)
    blobs = [f"layer {number} of {repository}".encode() for number in range(count)]
    return [
        {"repositoryName": repository, "uploadId": upload(ecr, repository, blob), "layerDigests": [digest(blob)]}
        for blob in blobs
    ]


def json_lines(inputs: list[dict[str, object]]) -> bytes:
    return "".join(f"{json.dumps(each)}\n" for each in inputs).encode()


def json_array(inputs: list[dict[str, object]]) -> bytes:
    return json.dumps(inputs, indent=1).encode()


def yaml_array(inputs: list[dict[str, object]]) -> bytes:
    return "".join(f"- {json.dumps(each)}\n" for each in inputs).encode()


@pytest.mark.parametrize("form", [json_lines, json_array, yaml_array])
def test_each_input_has_a_line_in_the_inputs_order(
    server: Server, tmp_path: Path, form: Callable[[list[dict[str, object]]], bytes]
) -> None:
    inputs = completes(server.url, f"batch/{form.__name__}", 20)

    done = run_batch(server, form(inputs), tmp_path, "complete-layer-upload")

    assert done.status == 0, done.err
    assert [(each["input"], each["outcome"]) for each in lines(done)] == [(number, "done") for number in range(1, 21)]
    assert [[each["output"]["layerDigest"]] for each in lines(done)] == [each["layerDigests"] for each in inputs]
    assert "asyncpush: 20 inputs: 20 done, 0 already there, 0 failed; 20 requests (0 throttled)" in done.err


def test_a_failure_stops_nothing_and_a_layer_that_is_there_is_none(server: Server, tmp_path: Path) -> None:
    good, again, other = completes(server.url, "batch/mixed", 3)
    twin = upload(judge(server.url), "batch/mixed", b"layer 0 of batch/mixed")
    file, deep = tmp_path / "inputs", '{"layerDigests": ' + "[" * 5000
    file.write_text(
        f"{json.dumps(good)}\n"
        f"{json.dumps({**good, 'uploadId': UNKNOWN})}\n"
        "not JSON\n"
        "\n"
        f"{json.dumps({'repositoryName': 'batch/mixed'})}\n"
        f"{json.dumps({**good, 'uploadId': 'bad'})}\n"
        "[]\n"
        f"{deep}\n"
        f"{json.dumps({**good, chr(0xD800): 1})}\n"
        f"{json.dumps(other)}"
    )

    done = run_here("ecr", "complete-layer-upload", "--batch", file, **server.environment)
    present = run_batch(server, json_lines([{**good, "uploadId": twin}]), tmp_path, "complete-layer-upload")

    assert [each["outcome"] for each in lines(done)] == ["done", *["failed"] * 7, "done"]
    assert done.status == 1
    errors = [each["error"] for each in lines(done)[1:8]]
    assert errors[0]["code"] == "UploadNotFoundException"
    assert errors[0]["message"].startswith(
        "An error occurred (UploadNotFoundException) when calling the CompleteLayerUpload operation: "
    )
    wanted = ("Invalid JSON", 'input: "uploadId"', "--upload-id: 'bad'", "expecting map", "Invalid JSON", "\ud800")
    assert all(words in error["message"] for words, error in zip(wanted, errors[1:], strict=True))
    assert again["uploadId"]  # was left alone
    assert present.status == 0
    assert [each["outcome"] for each in lines(present)] == ["present"]
    assert lines(present)[0]["output"]["layerDigest"] == digest(b"layer 0 of batch/mixed")


def test_what_the_command_line_gives_counts_for_every_input(server: Server, tmp_path: Path) -> None:
    inputs = completes(server.url, "batch/common", 2)
    bare = [{"uploadId": each["uploadId"], "layerDigests": each["layerDigests"]} for each in inputs]
    words = ["complete-layer-upload", "--repository-name", "batch/common", "--query", "layerDigest", "--unordered"]

    done = run_batch(server, json_lines(bare), tmp_path, *words)

    assert {each["output"] for each in lines(done)} == {each["layerDigests"][0] for each in inputs}


def test_a_batch_of_questions_is_answered_page_by_page(server: Server, tmp_path: Path) -> None:
    judge(server.url).create_repository(repositoryName="batch/pages")
    asked = [{"repositoryName": "batch/pages"}, {"repositoryName": "none/none"}]

    done = run_batch(server, json_array(asked), tmp_path, "describe-images")

    assert [each.get("output") for each in lines(done)] == [{"imageDetails": []}, None]


def test_parts_of_one_upload_keep_their_order(server: Server, tmp_path: Path) -> None:
    ecr = judge(server.url)
    ecr.create_repository(repositoryName="batch/parts")
    whole, size = os.urandom(7 * 1000), 1000
    inputs = []
    for upload_id in [upload(ecr, "batch/parts") for _ in range(3)]:
        for first in range(0, len(whole), size):
            part = tmp_path / str(first)
            part.write_bytes(whole[first : first + size])
            inputs.append(
                {
                    "repositoryName": "batch/parts",
                    "uploadId": upload_id,
                    "partFirstByte": first,
                    "partLastByte": first + size - 1,
                    "layerPartBlob": f"fileb://{part}",
                }
            )

    done = run_batch(server, json_lines(inputs), tmp_path, "upload-layer-part")

    assert done.status == 0, done.out
    assert [each["output"]["lastByteReceived"] for each in lines(done)] == [each["partLastByte"] for each in inputs]


def test_a_result_is_there_before_the_next_input_is(server: Server) -> None:
    first, second = completes(server.url, "batch/stream", 2)
    with subprocess.Popen(
        [sys.executable, "-m", "asyncpush", "ecr", "complete-layer-upload", "--batch", "-"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        env=cli_environment(**server.environment),
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        for each in (first, second):
            process.stdin.write(json_lines([each]))
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["outcome"] == "done"
        process.stdin.close()
        assert process.wait(timeout=20) == 0


async def test_as_many_requests_as_allowed_are_in_flight_and_no_more() -> None:
    allowed, open_now, most = 8, 0, 0
    full = anyio.Event()

    async def answer(_: web.Request) -> web.Response:
        nonlocal open_now, most
        open_now += 1
        most = max(most, open_now)
        if open_now == allowed:
            full.set()
        # One at a time, this would wait for ever.
        await full.wait()
        await anyio.wait_all_tasks_blocked()
        open_now -= 1
        return web.json_response({"uploadId": UNKNOWN}, content_type="application/x-amz-json-1.1")

    async with serving_http(answer) as port:
        done = await run_against(
            f"http://127.0.0.1:{port}",
            *("initiate-layer-upload", "--batch", "-", "--max-requests", str(allowed)),
            stdin=json_lines([{"repositoryName": "batch/many"}] * 40),
        )

    assert (done.status, len(lines(done)), most) == (0, 40, allowed)


async def run_against(url: str, *words: str, stdin: bytes) -> Ran:
    """Run ``asyncpush ecr`` while this event loop serves it."""

    def run() -> Ran:
        keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": REGION}
        return run_cli("ecr", *words, stdin=stdin, AWS_ENDPOINT_URL_ECR=url, **keys)

    return await to_thread.run_sync(run)


@pytest.mark.parametrize(
    "fault_config",
    [
        FaultConfig(throttles=(parse_throttle("CompleteLayerUpload=20:10"),)),
        FaultConfig(faults=(parse_fault("CompleteLayerUpload:every=3,limit=5:lost-reply"),)),
        FaultConfig(faults=(parse_fault("CompleteLayerUpload:every=4,limit=4:server-error"),)),
    ],
    ids=["throttled", "lost replies", "server errors"],
)
async def test_no_input_of_a_batch_fails_under_faults(tmp_path: Path, fault_config: FaultConfig) -> None:
    async with Emulator(tmp_path, fsync=False) as emulator:
        inputs = await to_thread.run_sync(completes, emulator.endpoint_url, "batch/faults", 30)
        emulator.fault_config = fault_config

        done = await run_against(
            emulator.endpoint_url, "complete-layer-upload", "--batch", "-", stdin=json_lines(inputs)
        )

    assert [each["outcome"] for each in lines(done)] == ["done"] * 30, done.out
    assert done.status == 0
    assert emulator.requests.counts()["CompleteLayerUpload"] > 30


def test_without_credentials_a_batch_ends_at_once() -> None:
    nowhere = {"AWS_ENDPOINT_URL_ECR": "http://127.0.0.1:1", "AWS_REGION": REGION}

    done = run_cli("ecr", "describe-images", "--batch", "-", stdin=b'{"repositoryName": "ab"}\n' * 100, **nowhere)

    assert (done.status, done.out) == (253, "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--batch /no/such/file", "Unable to read the batch /no/such/file: No such file or directory"),
        ("--batch - --output text", "--batch prints JSON lines"),
        ("--batch - --cli-input-json {}", "--batch can't be combined"),
        ("--unordered", "--unordered needs --batch"),
        ("--batch - --max-requests 0", "--max-requests"),
    ],
)
def test_a_batch_that_makes_no_sense_is_not_begun(words: str, message: str) -> None:
    done = run_here("ecr", "describe-repositories", *words.split(), AWS_REGION=REGION)

    assert done.status == 252
    assert message in done.err


inputs_of_all_kinds = st.lists(
    st.dictionaries(st.text(max_size=5), st.text() | st.integers() | st.lists(st.text(), max_size=3), max_size=3)
)


@given(inputs_of_all_kinds, st.sampled_from([json_lines, json_array]), st.integers(1, 40))
def test_inputs_are_read_alike_however_they_arrive(
    inputs: list[dict[str, object]], form: Callable[[list[dict[str, object]]], bytes], size: int
) -> None:
    text = form(inputs)
    blocks = [text[at : at + size] for at in range(0, len(text), size)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("asyncpush.awscli.batch_input.os.read", lambda *_: blocks.pop(0) if blocks else b"")
        reader = BatchInput(0)
        found = []
        while items := reader.more():
            found += items

    assert [item.members for item in found] == inputs
    assert [item.number for item in found] == list(range(1, len(inputs) + 1))


@given(st.binary(max_size=200), st.sampled_from([b"{", b"[", b"[{},", b"- ", b""]))
def test_rubbish_is_a_failed_input_and_never_a_traceback(rubbish: bytes, begin: bytes) -> None:
    blocks = [begin, rubbish]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("asyncpush.awscli.batch_input.os.read", lambda *_: blocks.pop(0) if blocks else b"")
        reader = BatchInput(0)
        for _ in range(300):
            if not reader.more():
                return
    raise AssertionError("it does not end")


def test_a_layer_file_goes_into_its_upload_whole(server: Server, tmp_path: Path) -> None:
    ecr = judge(server.url)
    ecr.create_repository(repositoryName="batch/file")
    file = tmp_path / "layer"
    file.write_bytes(os.urandom(12_000_001))
    words = ["ecr", "upload-layer-part", "--repository-name", "batch/file", "--upload-id", upload(ecr, "batch/file")]

    own = ["--layer-file", file, "--part-size", "5242880", "--query", "lastByteReceived"]
    sent = run_here(*words, *own, **server.environment)
    done = ecr.complete_layer_upload(
        repositoryName="batch/file", uploadId=words[-1], layerDigests=[digest(file.read_bytes())]
    )

    assert (sent.status, sent.out) == (0, "12000000\n"), sent.err
    assert done["layerDigest"] == digest(file.read_bytes())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--layer-file /no/such/file", "the file does not exist"),
        ("--layer-file / ", "is not a regular file"),
        ("--layer-file /dev/null --part-first-byte 0", "--layer-file can't be combined with"),
        (f"--layer-file {__file__} --part-size 99999999", "--part-size: 99999999 bytes"),
        (
            f"--layer-file {__file__} --part-size 99",
            "--part-size: 99 bytes; for this file, ECR accepts 5242880 to 20971520",
        ),
        (f"--layer-file {__file__} --generate-cli-skeleton output", "can't be combined with a skeleton"),
    ],
)
def test_a_layer_file_that_makes_no_sense_is_not_begun(words: str, message: str) -> None:
    named = ["--repository-name", "batch/file", "--upload-id", UNKNOWN]

    done = run_here("ecr", "upload-layer-part", *named, *words.split(), AWS_REGION=REGION)

    assert done.status == 252
    assert message in done.err
