"""memory: how much memory does a migration of many images take at its peak, and how does that grow?

    python benchmarks/memory.py [--images 500] [--platforms 8] [--layers 6] [--real] [--journal] [--goal]

A registry of made-up images, in a process of its own, is the source: each image has a tag of its own, and is an index
of ``--platforms`` images with ``--layers`` layers, of which four are shared by all images for that platform. A run of a
tenth of the images shows what is there before, and what each image adds. ``--real`` pushes them, into an ECR that
answers and keeps nothing; otherwise it is a dry run. ``--goal`` is 20,000 images with 1,000,000 pairs of a repository
and a blob, and fails above 400 MiB; it takes an hour or so.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from answers import RefusalError, answer

HERE = Path(__file__).parent
MiB = 1024 * 1024
_OCI = "application/vnd.oci.image."

#: What the goal allows, and how its images are made: 20,000 x 8 x (1 config + 2 own layers), and what images share.
_MOST = 400 * MiB
_GOAL = {"images": 20_000, "platforms": 8, "layers": 9, "repositories": 20}

#: Repositories that the target has.
_REPOSITORIES = 200

#: Layers of an image that all images for its platform have.
_SHARED = 4


def main() -> int:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=500, help="images in all (500)")
    parser.add_argument("--platforms", type=int, default=8, help="platforms of each (8)")
    parser.add_argument("--layers", type=int, default=6, help="layers of each platform (6), four of them shared")
    parser.add_argument("--repositories", type=int, default=10, help="repositories that they are in (10)")
    parser.add_argument("--real", action="store_true", help="push them, instead of a dry run")
    parser.add_argument("--journal", action="store_true", help="with a journal")
    parser.add_argument("--goal", action="store_true", help="20,000 images and 1,000,000 pairs, in 400 MiB")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        asyncio.run(_serve(*map(int, given.serve.split(","))))
        return 0
    if given.goal:
        vars(given).update(_GOAL)
    print(f"{'images':>8} {'pairs':>9} {'wall s':>8} {'CPU s':>8} {'peak MiB':>9}  MiB more an image")
    few, many = max(given.repositories, given.images // 10), given.images
    first, _ = _measured(given, few)
    last, failed = _measured(given, many, first, few)
    return int(failed or (given.goal and last > _MOST))


def _measured(given: argparse.Namespace, images: int, before: int = 0, of: int = 0) -> tuple[int, bool]:
    """Run once and print a line; the peak in bytes, and whether the run failed."""
    tags = images // given.repositories
    with tempfile.TemporaryDirectory() as scratch, _registry(tags, given.platforms, given.layers) as port:
        folder = Path(scratch)
        plan = {
            "version": 1,
            "registries": {f"127.0.0.1:{port}": {"plain_http": True, "credentials": {"anonymous": True}}},
            "targets": {"here": {"region": "eu-west-1", "endpoint_url": f"http://127.0.0.1:{port}"}},
            "defaults": {"targets": ["here"]},
            "images": [
                {"from": f"127.0.0.1:{port}/team/app-{number}", "to": f"app-{number}"}
                for number in range(given.repositories)
            ],
        }
        (folder / "plan.json").write_text(json.dumps(plan))
        command = [sys.executable, "-m", "asyncpush", "migrate", str(folder / "plan.json"), "--progress", "none", "-q"]
        command += [] if given.real else ["--dry-run"]
        command += [] if given.journal else ["--no-resume"]
        launcher = [sys.executable, "-I", "-S", str(HERE / "launch.py"), str(folder / "used")]
        keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true"}
        with (folder / "out").open("wb") as out:
            done = subprocess.run([*launcher, *command], env={**os.environ, **keys}, stdout=out, check=False)
        wall, user, system, peak = map(float, (folder / "used").read_text().split())
        size = int(peak) if sys.platform == "darwin" else int(peak) * 1024
    own = given.platforms * (given.layers + 1 - min(_SHARED, given.layers))
    pairs = images * own + given.repositories * given.platforms * min(_SHARED, given.layers)
    growth = f"{(size - before) / (images - of) / MiB:.4f}" if images > of and before else ""
    print(f"{images:8} {pairs:9} {wall:8.1f} {user + system:8.1f} {size / MiB:9.1f}  {growth}", flush=True)
    if done.returncode:
        print(f"the migration ended with {done.returncode}", file=sys.stderr)
    return size, bool(done.returncode)


@contextmanager
def _registry(tags: int, platforms: int, layers: int) -> Iterator[int]:
    """Source and target, in a process of its own, and the port that it listens on."""
    command = [sys.executable, str(Path(__file__)), "--serve", f"{tags},{platforms},{layers}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None, "it is a pipe"
        try:
            yield int(process.stdout.readline())
        finally:
            process.terminate()


async def _serve(tags: int, platforms: int, layers: int) -> None:
    made = _Made(tags, platforms, layers)
    server = await asyncio.start_server(made.connection, "127.0.0.1", 0, limit=64 * MiB)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await server.serve_forever()


class _Made:
    """Images that are made up when they are asked for, and an ECR that takes them."""

    def __init__(self, tags: int, platforms: int, layers: int) -> None:
        self._tags = tags
        self._platforms = platforms
        self._layers = layers
        #: What a digest is of.
        self._manifests: dict[str, bytes] = {}
        self._blobs: dict[bytes, str] = {}

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one client's requests."""
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = re.search(r"(?i)\r\ncontent-length: *(\d+)", head)
                body = await reader.readexactly(int(length[1])) if length else b""
                method, path, _ = head.split(" ", 2)
                status, kind, found = self._ecr(head, body) if method == "POST" else self._source(path)
                digest = f"Docker-Content-Digest: {_digest(found)}\r\n" if "/manifests/" in path else ""
                headers = f"Content-Type: {kind}\r\n{digest}Content-Length: {len(found)}"
                writer.write(f"HTTP/1.1 {status} -\r\n{headers}\r\n\r\n".encode())
                writer.write(b"" if method == "HEAD" else found)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    def _source(self, path: str) -> tuple[int, str, bytes]:
        if path.endswith("/tags/list") or "/tags/list?" in path:
            return 200, "application/json", json.dumps({"tags": [f"t{at}" for at in range(self._tags)]}).encode()
        if match := re.fullmatch(r"/v2/(.+)/manifests/(.+)", path):
            repository, reference = match.groups()
            raw = self._manifests.get(reference)
            if raw is None and reference.startswith("t"):
                raw = self._root(repository, reference)
            if raw is not None:
                return 200, json.loads(raw)["mediaType"], raw
        if (match := re.fullmatch(r"/v2/.+/blobs/sha256:(.+)", path)) and (key := self._blobs.get(_packed(match[1]))):
            return 200, "application/octet-stream", key.encode()
        return (200, "application/json", b"{}") if path == "/v2/" else (404, "application/json", b'{"errors": []}')

    def _root(self, repository: str, tag: str) -> bytes:
        children = [self._image(repository, tag, number) for number in range(self._platforms)]
        if len(children) == 1:
            return children[0]
        named = [
            _descriptor("manifest.v1+json", raw, platform={"os": "linux", "architecture": f"a{number}"})
            for number, raw in enumerate(children)
        ]
        return self._document("index.v1+json", {"manifests": named})

    def _image(self, repository: str, tag: str, number: int) -> bytes:
        own = f"{repository}:{tag} {number}"
        layers = [f"shared {number} {at}" if at < _SHARED else f"{own} {at}" for at in range(self._layers)]
        config = self._blob("config.v1+json", f"{own} config")
        return self._document(
            "manifest.v1+json",
            {"config": config, "layers": [self._blob("layer.v1.tar+gzip", layer) for layer in layers]},
        )

    def _blob(self, kind: str, key: str) -> dict[str, object]:
        descriptor = _descriptor(kind, key.encode())
        self._blobs[_packed(str(descriptor["digest"]).removeprefix("sha256:"))] = key
        return descriptor

    def _document(self, kind: str, members: dict[str, object]) -> bytes:
        raw = json.dumps({"schemaVersion": 2, "mediaType": _OCI + kind, **members}).encode()
        self._manifests[_digest(raw)] = raw
        return raw

    def _ecr(self, head: str, body: bytes) -> tuple[int, str, bytes]:
        operation = re.search(r"(?i)\r\nx-amz-target: *\S+\.(\w+)", head)
        kind = "application/x-amz-json-1.1"
        try:
            document = _answer(operation[1] if operation else "", body)
        except RefusalError as error:
            return 400, kind, json.dumps({"__type": error.code, "message": str(error)}).encode()
        return 200, kind, json.dumps(document).encode()


def _answer(operation: str, body: bytes) -> dict[str, Any]:
    request: dict[str, Any] = json.loads(body or b"{}") if operation != "UploadLayerPart" else {}
    match operation:
        case "DescribeRepositories":
            address = "000000000000.dkr.ecr.eu-west-1.amazonaws.com"
            return {
                "repositories": [
                    {"repositoryName": name, "registryId": "000000000000", "repositoryUri": f"{address}/{name}"}
                    for name in request.get("repositoryNames") or [f"app-{number}" for number in range(_REPOSITORIES)]
                ]
            }
        case "DescribeRegistry":
            return {"registryId": "000000000000"}
        case "GetAccountSetting":
            return {"name": request["name"], "value": "DISABLED"}
    document, _ = answer(operation, body, len(body), 10 * MiB)
    return document


def _descriptor(kind: str, data: bytes, **more: object) -> dict[str, object]:
    return {"mediaType": _OCI + kind, "digest": _digest(data), "size": len(data), **more}


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _packed(digest: str) -> bytes:
    try:
        return bytes.fromhex(digest)
    except ValueError:
        return b""


if __name__ == "__main__":
    sys.exit(main())
