"""Whatever is asked of the emulator, it answers as an AWS service does, at once, and what it keeps stays consistent."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import aiohttp
import anyio

from support.aws_fuzzer import Fuzzer
from support.commands import cli_environment, run_cli

REQUESTS = int(os.environ.get("ASYNCPUSH_FUZZ_REQUESTS", "600"))
SEED = os.environ.get("ASYNCPUSH_FUZZ_SEED", "1")
CLIENTS = 6

#: What a model allows and the emulator does not have.
ABSENT = "NotImplementedException"


@contextmanager
def served(data: Path, log: Path) -> Iterator[str]:
    """The URL of an emulator that everybody may use, with its standard error in a file; it must end in order."""
    command = [sys.executable, "-m", "asyncpush", "serve", "--port", "0", "--data", str(data), "--no-verify-signatures"]
    with (
        log.open("wb") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, env=cli_environment()) as process,
    ):
        assert process.stdout is not None
        try:
            yield process.stdout.readline().decode().strip().partition("=")[2]
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 0


async def bombard(session: aiohttp.ClientSession, fuzzer: Fuzzer, count: int, failures: list[str]) -> None:
    """Send requests one after the other, and note those that are not answered as they should be."""
    for _ in range(count):
        sent = fuzzer.request()
        headers = {"X-Amz-Target": sent.target, "Content-Type": "application/x-amz-json-1.1"}
        try:
            async with session.post("/", headers=headers, data=sent.body) as response:
                answer = await response.json(content_type=None)
        except (TimeoutError, aiohttp.ClientError, ValueError) as error:
            failures.append(f"{error!r}: {sent}"[:2000])
            continue
        refused = response.status != 200
        code = answer.get("__type", "") if isinstance(answer, dict) else ""
        if (response.status >= 500 and code != ABSENT) or (refused and not re.fullmatch("[A-Z][A-Za-z]+", code)):
            failures.append(f"{response.status} {answer}: {sent}"[:2000])
        elif not refused and sent.learns:
            fuzzer.learn(sent, answer)
        elif refused and sent.learns:
            fuzzer.unlearn(sent, code)


async def test_no_request_makes_it_fail_hang_or_lose_what_it_holds(tmp_path: Path) -> None:
    data, log, failures = tmp_path / "data", tmp_path / "log", list[str]()
    with served(data, log) as url:
        limit = aiohttp.ClientTimeout(total=30)
        async with aiohttp.ClientSession(url, timeout=limit) as session, anyio.create_task_group() as group:
            for number in range(CLIENTS):
                fuzzer = Fuzzer(Random(f"{SEED}-{number}"), f"team/app-{number}")
                group.start_soon(bombard, session, fuzzer, REQUESTS // CLIENTS, failures)
        async with aiohttp.ClientSession(url) as session, session.get("/_emulator/requests") as response:
            done = {each["operation"] for each in (await response.json())["requests"] if each["status"] == 200}

    assert not failures, f"seed {SEED}: {len(failures)} failures, such as {failures[:5]}"
    assert "Traceback" not in await anyio.Path(log).read_text()
    assert {"PutImage", "CompleteLayerUpload", "BatchDeleteImage", "UploadLayerPart"} <= done
    checked = run_cli("serve", "--check", "--data", data)
    assert checked.status == 0, checked.out
