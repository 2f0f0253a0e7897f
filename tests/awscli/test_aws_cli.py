"""The aws CLI against the emulator, and asyncpush beside it: two clients, one layer, one opinion."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support.commands import Server, cli_environment
from support.images import digest


def test_the_aws_cli_pushes_a_layer_that_asyncpush_then_finds(
    server: Server, need: Callable[[str], str], tmp_path: Path
) -> None:
    aws = need("aws")
    file = tmp_path / "layer"
    file.write_bytes(b"a layer of one part " * 1000)

    def ecr(operation: str, *words: str) -> dict[str, Any]:
        command = [aws, "ecr", operation, "--repository-name", "judge/aws", "--output", "json", *words]
        environment = cli_environment(**server.environment, AWS_DEFAULT_REGION=server.environment["AWS_REGION"])
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    ecr("create-repository")
    upload = ecr("initiate-layer-upload")["uploadId"]
    last = str(file.stat().st_size - 1)
    part = ["--part-first-byte", "0", "--part-last-byte", last, "--layer-part-blob", f"fileb://{file}"]
    ecr("upload-layer-part", "--upload-id", upload, *part)
    completed = ecr("complete-layer-upload", "--upload-id", upload, "--layer-digests", digest(file.read_bytes()))

    ours = server.run("layers", file, "--repository-name", "judge/aws", "--output", "json")

    [layer] = json.loads(ours.out)["layers"]
    assert (layer["outcome"], layer["digest"]) == ("present", completed["layerDigest"])


def test_the_aws_cli_finds_a_layer_that_asyncpush_has_pushed(
    server: Server, need: Callable[[str], str], tmp_path: Path
) -> None:
    aws = need("aws")
    file = tmp_path / "layer"
    file.write_bytes(b"another layer " * 1000)
    ours = server.run("layers", file, "--repository-name", "judge/ours", "--create-repository")
    assert ours.status == 0, ours.err
    pushed = ours.out.split()[0]

    done = subprocess.run(
        [aws, "ecr", "batch-check-layer-availability", "--repository-name", "judge/ours", "--layer-digests", pushed],
        capture_output=True,
        text=True,
        check=False,
        env=cli_environment(**server.environment, AWS_DEFAULT_REGION=server.environment["AWS_REGION"]),
    )

    assert done.returncode == 0, done.stderr
    [layer] = json.loads(done.stdout)["layers"]
    assert (layer["layerAvailability"], layer["layerSize"]) == ("AVAILABLE", file.stat().st_size)
