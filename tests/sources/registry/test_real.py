"""Real registries as sources: docker-registry with passwords, and the emulator; skopeo judges."""

from __future__ import annotations

import hashlib
import random
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from anyio import to_thread

import asyncpush
from asyncpush import Registry
from asyncpush.emulator import Emulator
from asyncpush.errors import SourceDeniedError, SourceNotFoundError
from asyncpush.protocols import ImageNode, IndexNode, RemoteBlob
from asyncpush.settings import Credentials, SourceRegistry
from support.aws import password
from support.commands import Ran, Server, run_here
from support.images import Layout, at, layer_tar
from support.passwords import HTPASSWD, PASSWORD, USER
from support.processes import wait_until_it_listens
from support.registry_server import open_remote


@dataclass(frozen=True)
class DockerRegistry:
    """A running docker-registry that wants a password, with an index and images in it."""

    host: str
    index: dict[str, object]

    def source(self, **more: object) -> SourceRegistry:
        given = {"credentials": Credentials(USER, PASSWORD), **more}
        return SourceRegistry(host=self.host, plain_http=True, **given)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def docker_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str, str], DockerRegistry]]:
    """Starts docker-registry with htpasswd, and fills it by skopeo."""
    folder = tmp_path_factory.mktemp("docker-registry")
    running: dict[str, tuple[subprocess.Popen[bytes], DockerRegistry]] = {}

    def start(program: str, skopeo: str) -> DockerRegistry:
        if "it" not in running:
            with socket.create_server(("127.0.0.1", 0)) as free:
                address = f"127.0.0.1:{free.getsockname()[1]}"
            (folder / "htpasswd").write_text(f"{HTPASSWD}\n")
            (folder / "config.yml").write_text(
                f"version: 0.1\nstorage:\n  filesystem: {{rootdirectory: {folder}/held}}\n"
                f"auth:\n  htpasswd: {{realm: here, path: {folder}/htpasswd}}\nhttp:\n  addr: {address}\n"
            )
            command = [program, "serve", str(folder / "config.yml")]
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            layout = Layout()
            amd = layout.image(random.Random(1).randbytes(3_000_000), platform="linux/amd64")
            arm = layout.image(layer_tar("arm"), platform="linux/arm64/v8")
            index = layout.index(at(amd, "linux/amd64"), at(arm, "linux/arm64/v8"))
            layout.tag(index, "1.0").tag(amd, "amd")
            layout.write(folder / "layout")
            running["it"] = process, DockerRegistry(address, index)
            wait_until_it_listens(address)
            for tag in ("1.0", "amd"):
                subprocess.run(
                    [skopeo, "copy", "-q", "--all", "--dest-tls-verify=false", f"--dest-creds={USER}:{PASSWORD}",
                     f"oci:{folder}/layout:{tag}", f"docker://{address}/library/app:{tag}"],
                    check=True, capture_output=True, timeout=60,
                )  # fmt: skip
        return running["it"][1]

    yield start
    for process, _ in running.values():
        process.terminate()
        process.wait(timeout=10)


@pytest.fixture
def docker(need: Callable[[str], str], docker_registry: Callable[[str, str], DockerRegistry]) -> DockerRegistry:
    return docker_registry(need("docker-registry"), need("skopeo"))


async def sha256_of(blob: RemoteBlob) -> str:
    sha256, buffer = hashlib.sha256(), memoryview(bytearray(100_000))
    async with blob.stream() as stream:
        while count := await stream.readinto(buffer):
            sha256.update(buffer[:count])
    return sha256.hexdigest()


async def test_an_index_in_docker_registry_is_read_to_its_last_byte(docker: DockerRegistry) -> None:
    async with open_remote(docker.source()) as remote:
        descriptor = await remote.resolve("library/app", "1.0")
        root = await remote.load("library/app", descriptor)

        assert str(descriptor.digest) == docker.index["digest"]
        assert isinstance(root, IndexNode)
        for child in root.children:
            assert isinstance(child, ImageNode)
            for blob in (child.config, *child.layers):
                assert isinstance(blob, RemoteBlob)
                assert blob.descriptor is not None
                assert await sha256_of(blob) == blob.descriptor.digest.hex
        assert sorted(await remote.tags("library/app")) == ["1.0", "amd"]
        assert (await remote.referrers("library/app", descriptor.digest)).descriptors == ()
        assert (await remote.referrers("library/app", descriptor.digest)).descriptors == ()
        assert remote.requests["GET referrers"] == 1


async def test_docker_registry_resumes_where_a_stream_begins(docker: DockerRegistry) -> None:
    async with open_remote(docker.source()) as remote:
        image = await remote.load("library/app", await remote.resolve("library/app", "amd"))
        assert isinstance(image, ImageNode)
        [layer] = image.layers
        assert isinstance(layer, RemoteBlob)
        whole, rest = bytearray(layer.source_size), bytearray(layer.source_size)
        async with layer.stream() as stream:
            assert await stream.readinto(memoryview(whole)) == layer.source_size
        async with layer.stream(1_234_567) as stream:
            count = await stream.readinto(memoryview(rest))
        assert rest[:count] == whole[1_234_567:]


async def test_docker_registry_refuses_wrong_passwords_and_what_is_missing(docker: DockerRegistry) -> None:
    async with open_remote(docker.source(credentials=Credentials(USER, "wrong"))) as remote:
        with pytest.raises(SourceDeniedError, match="refuses the credentials of 'reader'"):
            await remote.resolve("library/app", "1.0")
    async with open_remote(docker.source()) as remote:
        with pytest.raises(SourceNotFoundError, match="library/app:nope"):
            await remote.resolve("library/app", "nope")
        with pytest.raises(SourceNotFoundError, match="repository no/such"):
            await remote.tags("no/such")


async def test_the_emulator_is_a_source_too(emulator: Emulator, registry: Registry, tmp_path: Path) -> None:
    layout = Layout()
    index = layout.index(at(layout.image(layer_tar("x", 200_000)), "linux/amd64"))
    folder = await to_thread.run_sync(layout.tag(index, "1").write, tmp_path / "layout")
    await asyncpush.push(registry, f"oci:{folder}:1", "team/app:1")
    credentials = Credentials("AWS", await to_thread.run_sync(password, emulator.endpoint_url))
    host = emulator.endpoint_url.removeprefix("http://")

    async with open_remote(SourceRegistry(host=host, plain_http=True, credentials=credentials)) as remote:
        root = await remote.load("team/app", await remote.resolve("team/app", "1"))
        assert isinstance(root, IndexNode)
        [image] = root.children
        assert isinstance(image, ImageNode)
        [layer] = image.layers
        assert isinstance(layer, RemoteBlob)
        assert layer.descriptor is not None
        assert await sha256_of(layer) == layer.descriptor.digest.hex
        assert await remote.tags("team/app") == ("1",)
        assert (await remote.referrers("team/app", root.manifest.digest)).descriptors == ()


def push(server: Server, *words: str, **environment: str) -> Ran:
    """Push in this process."""
    return run_here("push", *words, "--create-repository", "--progress", "none", **server.environment, **environment)


def test_a_push_says_what_it_would_send(server: Server, docker: DockerRegistry) -> None:
    source = f"docker://{docker.host}/library/app:1.0"
    words = ("--to", "mirror", "--src-plain-http", "--dry-run")

    ran = push(server, source, *words, ASYNCPUSH_SRC_CREDS=f"{USER}:{PASSWORD}")

    assert ran.status == 0, ran.err
    assert f"mirror/library/app:1.0@{docker.index['digest']}" in ran.out
    assert PASSWORD not in ran.out + ran.err


@pytest.mark.parametrize(
    ("tag", "words", "status", "said"),
    [
        ("nope", ["--src-plain-http", f"--src-creds={USER}:{PASSWORD}"], 1, "has no manifest library/app:nope"),
        ("1.0", ["--src-plain-http", "--src-creds=reader:nix"], 4, "refuses the credentials of 'reader'"),
        ("1.0", ["--src-plain-http", "--src-creds", "no-colon"], 2, "write the user, a colon and the password"),
        ("1.0", [f"--src-creds={USER}:{PASSWORD}"], 1, "--src-plain-http"),
        ("1.0", ["--src-ca-bundle", "/missing.pem"], 2, "/missing.pem can't be used for TLS"),
        ("1.0/", [], 2, "is not a tag"),
    ],
)
def test_what_a_push_can_not_read_is_named(
    server: Server, docker: DockerRegistry, tag: str, words: list[str], status: int, said: str
) -> None:
    ran = push(server, f"docker://{docker.host}/library/app:{tag}", "team/app", *words)

    assert (ran.status, ran.out) == (status, "")
    assert said in ran.err
    assert ran.err.count("asyncpush: error:") == 1
    for secret in (PASSWORD, "no-colon", "nix", "Traceback"):
        assert secret not in ran.err


def test_one_password_goes_to_one_registry(server: Server) -> None:
    ran = push(server, "docker://a.example/x", "docker://b.example/x", "--to", "x", f"--src-creds={USER}:{PASSWORD}")

    assert ran.status == 2
    assert "is for one registry, and the sources are in a.example, b.example" in ran.err
    assert PASSWORD not in ran.err


def test_a_whole_image_goes_from_one_registry_to_another(server: Server, docker: DockerRegistry, skopeo: str) -> None:
    source = f"docker://{docker.host}/library/app:1.0"

    ran = push(server, source, "from/registry:2", "--src-plain-http", ASYNCPUSH_SRC_CREDS=f"{USER}:{PASSWORD}")

    assert ran.status == 0, ran.err
    creds, there = f"--creds=AWS:{password(server.url)}", f"docker://{server.url.removeprefix('http://')}"
    command = [skopeo, "inspect", "--raw", "--tls-verify=false", creds, f"{there}/from/registry:2"]
    judged = subprocess.run(command, check=True, capture_output=True, timeout=60)
    assert f"sha256:{hashlib.sha256(judged.stdout).hexdigest()}" == docker.index["digest"]


def test_help_names_the_source_options() -> None:
    shown = run_here("push", "--help").out

    for name in ("creds", "plain-http", "ca-bundle", "cert", "key", "tls-verify"):
        assert f"--src-{name}" in shown
    assert "docker://HOST/REPO" in shown
