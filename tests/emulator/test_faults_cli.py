"""Faults as users cause them: ``asyncpush serve`` with its options, asyncpush and the aws CLI against it."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import asyncpush
from asyncpush.emulator.faults.config import read_json
from support.aws import REGION
from support.commands import Server, cli_environment, run_cli
from support.images import Layout, layer_tar


@contextmanager
def serving(data: Path, *options: str | Path) -> Iterator[tuple[Server, Callable[..., Any]]]:
    """An emulator in a process of its own, and a way to ask its admin endpoint."""
    words = [sys.executable, "-m", "asyncpush", "serve", "--port", "0", "--data", str(data), *map(str, options)]
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=cli_environment(), text=True
    )
    try:
        assert process.stdout is not None
        match = re.fullmatch(r"export AWS_ENDPOINT_URL_ECR=(\S+)\n", process.stdout.readline())
        assert match
        keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}

        def admin(method: str = "GET", document: object = None) -> Any:
            body = None if document is None else json.dumps(document).encode()
            with urllib.request.urlopen(  # one request to this machine
                urllib.request.Request(f"{match[1]}/_emulator/faults", data=body, method=method)
            ) as response:
                return json.load(response)

        yield Server(match[1], {"AWS_ENDPOINT_URL_ECR": match[1], "AWS_REGION": REGION, **keys}), admin
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 0
        assert process.stdout is not None
        process.stdout.close()


FAULTS = """\
latency: 2ms
jitter: 1ms
fault:
  - CompleteLayerUpload:first=1:reset-after
  - PutImage:first=1:layers-not-found
"""


def test_a_push_under_faults_of_options_and_a_file_is_whole(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(FAULTS)
    layout = Layout()
    image = layout.image(layer_tar("base", 300_000), layer_tar("app"))
    folder = layout.tag(image, "1.0").write(tmp_path / "app")
    options = ["--bandwidth", "50MB/s", "--quotas", "aws", "--throttle", "InitiateLayerUpload=5:2", "--seed", "7"]
    rules = ["UploadLayerPart:nth=2:lost-reply", "BatchGetImage:first=1:unavailable"]
    faults = [word for rule in rules for word in ("--fault", rule)]
    with serving(tmp_path / "ecr", *options, *faults, "--admin", "--fault-config", tmp_path / "bad.yaml") as (
        server,
        admin,
    ):
        pushed = server.run("push", f"oci:{folder}", "team/app:1.0", "--create-repository")
        told = admin()
        admin("DELETE")
        again = server.run("push", f"oci:{folder}", "team/app:1.0", "--output", "json")

    assert (pushed.status, pushed.out.strip().rpartition("@")[2]) == (0, image["digest"]), pushed.err
    assert (told["latency"], told["bandwidth"], told["quotas"], told["seed"]) == ("2ms", "50MB/s", "aws", 7)
    hit_counts = {each["rule"]: each["count"] for each in told["hit_counts"]}
    assert list(hit_counts) == ["InitiateLayerUpload=5:2", "quotas=aws", *rules, *re.findall("  - (.*)", FAULTS)]
    assert hit_counts.pop("quotas=aws") == 0
    assert min(hit_counts.values()) >= 1
    [result] = json.loads(again.out)["images"]
    assert result["outcome"] == "present"
    stored = tmp_path / "ecr" / "repositories/ecr/000000000000" / REGION / "team/app/_layout"
    for name, data in layout.files.items():
        if name.startswith("blobs/"):
            assert (stored / name).read_bytes() == data


def test_the_aws_cli_retries_under_faults(need: Callable[[str], str], tmp_path: Path) -> None:
    aws = need("aws")
    with serving(tmp_path / "ecr", "--admin") as (server, admin):
        environment = cli_environment(**server.environment, AWS_DEFAULT_REGION=REGION)

        def ecr(*words: str) -> subprocess.CompletedProcess[str]:
            command = [aws, "ecr", *words, "--output", "json"]
            return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)

        admin("PUT", {"fault": ["CreateRepository:nth=1:throttle", "DescribeRepositories:access-denied"]})
        created = ecr("create-repository", "--repository-name", "app")
        denied = ecr("describe-repositories")
        hit_counts = [each["count"] for each in admin()["hit_counts"]]

    assert json.loads(created.stdout)["repository"]["repositoryName"] == "app", created.stderr
    assert "(AccessDeniedException)" in denied.stderr
    assert hit_counts == [1, 1]


def test_the_manuals_faults_are_understood(tmp_path: Path) -> None:
    page = Path(asyncpush.__file__).parent / "docs" / "emulator.md"
    faults = page.read_text().partition("## Faults")[2].replace("\\\n", " ")
    (tmp_path / "data").touch()
    commands = [shlex.split(line) for line in faults.splitlines() if line.startswith("asyncpush serve")]
    assert len(commands) == 3

    for command in commands:
        done = run_cli(*command[1:], "--data", tmp_path / "data")
        # All of it was read before the directory was looked at, which is none.
        assert "can't hold the emulator's data" in done.err

    [put] = [shlex.split(line) for line in faults.splitlines() if line.startswith("curl")]
    assert read_json(put[-1].encode()).fault_config().faults[0].lag == 2
