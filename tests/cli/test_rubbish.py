"""Broken sources, wrong words and bad endpoints: each ends in one clear line, and nothing half-put stays behind."""

from __future__ import annotations

import bz2
import gzip
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from anyio import to_thread

from support import images as im
from support.aws import judge
from support.commands import Ran, Server, cli_environment, run_cli, run_here
from support.relay import refused, relay_to

ERROR = "asyncpush: error: "

A, B = im.layer_tar("one"), im.layer_tar("two")

numbers = count()


def fails(ran: Ran, status: int, *words: str) -> str:
    """See that a run failed as a user should see it: one line that holds all of *words*."""
    assert ran.status == status, ran.err
    assert ran.err.startswith(ERROR), ran.err
    assert ran.err.count("\n") == 1, ran.err
    for word in words:
        assert word in ran.err
    return ran.err


def refuses(server: Server, source: str | Path, *words: str, status: int = 1, options: tuple[str, ...] = ()) -> str:
    """See that pushing *source* fails, and that the repository holds no image afterwards."""
    repository = f"rubbish/r{next(numbers)}"
    push = ["push", source, f"{repository}:1", "--create-repository", "--progress", "none", *options]
    ran = run_here(*push, **server.environment)
    assert ran.out == ""
    assert images_in(server, repository) == []
    return fails(ran, status, *words)


@cache
def client_of(url: str) -> Any:
    return judge(url)


def images_in(server: Server, repository: str) -> list[Any]:
    """The repository's images; none if it does not exist."""
    client = client_of(server.url)
    try:
        images: list[Any] = client.describe_images(repositoryName=repository)["imageDetails"]
    except client.exceptions.RepositoryNotFoundException:
        return []
    return images


def good() -> im.Layout:
    layout = im.Layout()
    return layout.tag(layout.image(A, B), "1")


def blobs(layout: im.Layout) -> list[str]:
    return [name for name in layout.files if name.startswith("blobs/")]


def with_manifest(raw: bytes | None = None, kind: str = im.MANIFEST, **members: object) -> im.Layout:
    """A layout whose only image has this manifest, or the good one with other members; None takes one out."""
    layout = im.Layout()
    config, layer = layout.blob(im.config_json([A]), im.CONFIG), layout.blob(A, im.RAW_LAYER)
    layers = [{**layer, **members.pop("layer", {})}]  # type: ignore[dict-item]
    document = {"schemaVersion": 2, "mediaType": kind, "config": config, "layers": layers, **members}
    text = json.dumps({name: value for name, value in document.items() if value is not None}).encode()
    return layout.tag(layout.blob(text if raw is None else raw, kind), "1")


# Broken sources


def test_an_archive_that_is_cut_anywhere_is_refused(server: Server, tmp_path: Path) -> None:
    for name, whole in (("oci", good().archive()), ("docker", im.DockerSave().image(A, B, tags=["x:1"]).archive())):
        data = whole.rstrip(b"\0")
        path = tmp_path / f"{name}.tar"
        for cut in (1, 511, 512, 700, 1024, 2048, len(data) // 2, len(data) - 600, len(data) - 1):
            path.write_bytes(data[:cut])
            refuses(server, path, str(path))
        path = tmp_path / f"{name}.tar.gz"
        packed = gzip.compress(whole)
        for cut in (5, len(packed) // 2, len(packed) - 1):
            path.write_bytes(packed[:cut])
            refuses(server, path, str(path))


def test_what_is_no_source_is_refused(server: Server, tmp_path: Path) -> None:
    empty, folder, noise, packed = (tmp_path / name for name in ("empty", "folder", "noise", "packed"))
    empty.touch()
    folder.mkdir()
    noise.write_bytes(bytes(range(256)) * 9)
    packed.write_bytes(bz2.compress(good().archive())[:-9])
    refuses(server, empty, str(empty), "empty")
    refuses(server, folder, str(folder), "not an OCI layout")
    refuses(server, noise, str(noise), "not a tar archive")
    refuses(server, packed, str(packed), "cut short")
    refuses(server, tmp_path / "missing", str(tmp_path / "missing"), "does not exist", status=2)
    refuses(server, f"oci:{tmp_path}/missing:1", f"{tmp_path}/missing", "does not exist", status=2)
    refuses(server, "ocl:folder", "ocl:folder", "oci:DIR", status=2)
    tar = tmp_path / "other.tar"
    tar.write_bytes(im.tar({"readme": b"no image"}))
    refuses(server, tar, str(tar), "holds no image")


def test_a_second_archive_behind_the_first_is_never_left_out_in_silence(server: Server, tmp_path: Path) -> None:
    one, two = (im.DockerSave().image(layer, tags=["x:1"]).archive() for layer in (A, B))
    path = tmp_path / "both"
    for data in (one + two, gzip.compress(one) + gzip.compress(two), gzip.compress(one) + bz2.compress(two)):
        path.write_bytes(data)
        refuses(server, path, str(path), "several archives in one", f"at byte {len(one)}", "docker save A B")


def test_every_blob_of_a_layout_must_be_there_and_be_itself(server: Server, tmp_path: Path) -> None:
    whole = good()
    for at, name in enumerate(blobs(whole)):
        data = whole.files[name]
        broken = {"missing": None, "changed": bytes([data[0] ^ 1]) + data[1:], "longer": data + b" ", "empty": b""}
        for how, content in broken.items():
            files = {**whole.files, name: content}
            layout = im.Layout({path: kept for path, kept in files.items() if kept is not None}, whole.manifests)
            folder = layout.write(tmp_path / f"{how}{at}")
            line = refuses(server, folder, str(folder), name.rpartition("/")[2][:12])
            assert ("damaged" in line) != (how == "missing")


def test_a_large_blob_that_does_not_match_its_digest_is_never_completed(server: Server, tmp_path: Path) -> None:
    data = bytearray(os.urandom(2**20) * 11)
    layout = im.Layout()
    config, layer = layout.blob(im.config_json([bytes(data)]), im.CONFIG), layout.blob(bytes(data), im.RAW_LAYER)
    layout.tag(layout.manifest(config, [layer]), "1")
    data[-1] ^= 1
    layout.files[f"blobs/sha256/{layer['digest'][7:]}"] = bytes(data)  # type: ignore[index]
    folder = layout.write(tmp_path / "large")
    line = refuses(server, folder, str(layer["digest"]), im.digest(bytes(data)))
    repository = f"rubbish/r{next(numbers) - 1}"
    answer = client_of(server.url).batch_check_layer_availability(
        repositoryName=repository, layerDigests=[layer["digest"]]
    )
    assert answer["layers"][0]["layerAvailability"] == "UNAVAILABLE"
    assert "damaged" in line


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("index.json", b"{", "malformed"),
        ("index.json", b"[]", "malformed"),
        ("index.json", b"\xff\xfe{}", "malformed"),
        ("index.json", b"", "malformed"),
        ("index.json", b'{"manifests":' + b"[" * 100_000, "malformed"),
        ("index.json", b'{"manifests":[]}', "holds no image"),
        ("index.json", b'{"manifests":[{"mediaType":"x","digest":"sha256:1","size":1}]}', "holds no image"),
        ("oci-layout", b"no", "malformed"),
        ("oci-layout", b'{"imageLayoutVersion":"2.0.0"}', "2.0.0"),
    ],
)
def test_a_layouts_own_files_must_make_sense(
    server: Server, tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    folder = good().write(tmp_path / "layout")
    (folder / name).write_bytes(content)
    refuses(server, folder, str(folder), words)


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        (with_manifest(layer={"size": len(A) + 1}), f"{len(A) + 1} bytes expected"),
        (with_manifest(layer={"size": 0}), "0 bytes expected"),
        (with_manifest(layer={"size": -1}), "size -1"),
        (with_manifest(layer={"size": 10**30}), "bytes expected"),
        (with_manifest(layer={"size": "9"}), "malformed"),
        (with_manifest(layer={"digest": f"sha512:{'a' * 128}"}), "not a sha256 digest"),
        (with_manifest(layer={"digest": "sha256:../../../etc/passwd"}), "not a sha256 digest"),
        (with_manifest(config=None), "lacks its config"),
        (with_manifest(layers=None), "lacks its config or layers"),
        (with_manifest(schemaVersion=1), "schema version 1"),
        (with_manifest(mediaType="application/x-unknown"), "application/x-unknown"),
        (with_manifest(mediaType=im.INDEX), im.INDEX),
        (with_manifest(kind="application/x-unknown"), "holds no image"),
        (with_manifest(annotations={"long": "x" * 5 * 2**20}), "4194304"),
        (with_manifest(b"[]"), "malformed"),
        (with_manifest(b'{"\xff":1}'), "malformed"),
        (with_manifest(b'{"a":' * 100_000), "malformed"),
        (with_manifest(b""), "0 bytes"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_manifest_must_make_sense(server: Server, tmp_path: Path, layout: im.Layout, words: str) -> None:
    folder = layout.write(tmp_path / "layout")
    refuses(server, folder, str(folder), words)


def test_an_empty_layer_is_refused_with_the_reason(server: Server, tmp_path: Path) -> None:
    layout = im.Layout()
    empty = layout.blob(b"", im.RAW_LAYER)
    folder = layout.tag(layout.image(A, more=[empty]), "1").write(tmp_path / "empty")
    refuses(server, folder, "0 bytes", "ECR cannot hold an empty layer")


def test_indexes_may_be_neither_cyclic_nor_nested_nor_endless(server: Server, tmp_path: Path) -> None:
    deep = im.Layout()
    root = deep.image(A)
    for _ in range(9):
        root = deep.index(root)
    refuses(server, deep.tag(root, "1").write(tmp_path / "deep"), "index in an index")
    many = im.Layout()
    refuses(server, many.tag(many.index(*[many.image(A)] * 1200), "1").write(tmp_path / "many"), "1000 manifests")
    cyclic, digest = im.Layout(), f"sha256:{'a' * 64}"
    link = {"mediaType": im.INDEX, "digest": digest, "size": 300}
    raw = json.dumps({"schemaVersion": 2, "mediaType": im.INDEX, "manifests": [link]}).encode().ljust(300)
    cyclic.files[f"blobs/sha256/{'a' * 64}"] = raw
    refuses(server, cyclic.tag(dict(link), "1").write(tmp_path / "cyclic"), "damaged", digest)
    cache = im.Layout()
    child = cache.blob(b"cache", "application/vnd.buildkit.cacheconfig.v0")
    refuses(server, cache.tag(cache.index(child), "1").write(tmp_path / "cache"), "not a manifest")


def test_every_entry_of_a_docker_archive_must_be_there_and_be_itself(server: Server, tmp_path: Path) -> None:
    saved = im.DockerSave().image(A, B, tags=["app:1"])
    path = tmp_path / "saved.tar"
    for name in saved.entries:
        for content in (None, b"garbage", b"", im.Link("../../etc/passwd")):
            entries = {**saved.entries, name: content}
            kept = {key: value for key, value in entries.items() if value is not None}
            path.write_bytes(im.DockerSave(kept, saved.items).archive())
            refuses(server, path, str(path))
    for manifest in (b"", b"{}", b"[]", b"[{}]", b'[{"Config":"x","Layers":["y"]}]', b"\xff"):
        path.write_bytes(im.tar({"manifest.json": manifest}))
        refuses(server, path, str(path))


def test_several_images_without_a_choice_are_listed(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "two.tar"
    path.write_bytes(im.DockerSave().image(A, tags=["app:1"]).image(B, tags=["web:2"]).archive())
    choices = [f"docker-archive:{path}:{name}" for name in ("app:1", "web:2")]
    refuses(server, path, *choices, status=2)
    refuses(server, f"docker-archive:{path}:db:3", "'db:3'", *choices, status=2)
    refuses(server, f"docker-archive:{path}:app:1", "linux/amd64", status=2, options=("--platform", "linux/arm64"))


# Wrong words


@pytest.mark.parametrize(
    ("destination", "words"),
    [
        ("Upper/case", "'Upper/case' is not a repository name"),
        ("a", "2 to 256"),
        ("x" * 257, "2 to 256"),
        ("a//b", "'a//b' is not a repository name"),
        ("app/", "'app/' is not a repository name"),
        ("../app", "is not an ECR registry"),
        ("", "names no repository"),
        (":1", "names no repository"),
        ("app:", "ends in a colon"),
        ("app:-1", "'-1' is not a tag"),
        ("app:a/b", "'app:a' is not an ECR registry"),
        (f"app:{'t' * 129}", "up to 128"),
        ("app:1@sha256:" + "a" * 64, "names a digest"),
        ("ghcr.io/owner/app:1", "'ghcr.io' is not an ECR registry"),
        ("localhost:5000/app", "--endpoint-url"),
        ("https://123456789012.dkr.ecr.eu-west-1.amazonaws.com/app", "https://"),
        ("docker://app", "docker://"),
        ("123456789012.dkr.ecr.eu-west-1.amazonaws.com", "names no repository"),
        ("12345.dkr.ecr.eu-west-1.amazonaws.com/app", "is not an ECR registry"),
        ("public.ecr.aws/app", "names no repository"),
    ],
)
def test_a_destination_that_ecr_would_refuse_is_a_usage_error(tmp_path: Path, destination: str, words: str) -> None:
    folder = good().write(tmp_path / "good")
    ran = run_here("push", folder, destination, AWS_ENDPOINT_URL_ECR="http://127.0.0.1:9", AWS_REGION="eu-west-1")
    fails(ran, 2, words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--max-memory 1MiB", "--max-memory 40MiB"),
        ("--max-memory lots", "--max-memory 'lots'"),
        ("--part-size 4MiB", "--part-size 5MiB 20MiB"),
        ("--part-size 21MiB", "--part-size 5MiB 20MiB"),
        ("--max-layers 0", "--max-layers 1"),
        ("--max-layers many", "--max-layers many"),
        ("--compression lz4", "--compression lz4 gzip zstd none"),
        ("--compression-level 99", "--compression-level 1 9"),
        ("--platform linux", "'linux' OS/ARCH"),
        ("--progress loud", "--progress loud plain"),
        ("--output yaml", "--output yaml json"),
        ("--region", "--region requires"),
        ("--to ghcr.io/x", "'ghcr.io' ACCOUNT.dkr.ecr.REGION.amazonaws.com"),
        ("--to mirror:1", "mirror:1 tag"),
    ],
)
def test_an_option_out_of_range_is_a_usage_error(tmp_path: Path, arguments: str, words: str) -> None:
    paths = ["oci:nowhere"] if "--to" in arguments else ["oci:nowhere", "app"]
    fails(run_here("push", *paths, *arguments.split()), 2, *words.split())


def test_too_few_and_too_many_words_are_usage_errors(tmp_path: Path) -> None:
    for arguments, words in (
        ("push", "SOURCE DESTINATION"),
        ("push x", "only 'x'"),
        ("push a b c", "--to"),
        ("push --to x", "no source was given"),
        ("layers", "--repository-name"),
        ("layers --repository-name app", "no file was given"),
        ("serve now", "unexpected argument 'now'"),
        ("serve --port 99999", "--port is 99999"),
        ("serve --port -1", "--port"),
        ("serve --tls-key x", "--tls-cert"),
        ("serve --tls-cert /nowhere", "/nowhere can't be used: No such file"),
        ("frobnicate", "frobnicate"),
    ):
        fails(run_here(*arguments.split(), AWS_REGION="eu-west-1"), 2, words)


def test_files_that_are_no_layers_are_refused(server: Server, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    for file, words in (
        (tmp_path / "missing", "does not exist"),
        (empty, "has 0 bytes"),
        (tmp_path, "not a regular file"),
    ):
        words_ = ["layers", file, "--repository-name", "rubbish/layers", "--create-repository"]
        fails(run_here(*words_, **server.environment), 1, str(file), words)
    ran = run_here(
        "layers", __file__, "--repository-name", "rubbish/no-such", "--progress", "none", **server.environment
    )
    fails(ran, 1, "rubbish/no-such", "--create-repository")
    fails(run_here("layers", __file__, "--repository-name", "NO", **server.environment), 2, "'NO'")


# The way to ECR


def push_good(folder: Path, *options: str, run: Callable[..., Ran] = run_here, **environment: str) -> Ran:
    """Push a good image with this environment alone."""
    words = ["push", good().write(folder / "good"), "rubbish/good:1", "--create-repository", "--progress", "none"]
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "eu-west-1"}
    return run(*words, *options, **{**keys, "AWS_ENDPOINT_URL_ECR": "http://127.0.0.1:9", **environment})


@pytest.mark.parametrize(
    "lacking", [("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"), ("SECRET_ACCESS_KEY",), ("ACCESS_KEY_ID",)]
)
def test_lacking_credentials_have_a_status_of_their_own(tmp_path: Path, lacking: tuple[str, ...]) -> None:
    ran = push_good(tmp_path, **{f"AWS_{name}": "" for name in lacking})
    fails(ran, 4, "no AWS credentials", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


def test_a_lacking_configuration_is_a_usage_error(tmp_path: Path) -> None:
    broken = tmp_path / "config"
    broken.write_text("[default\n")
    fails(push_good(tmp_path, AWS_REGION=""), 2, "no region is set; give --region")
    fails(push_good(tmp_path, AWS_SECRET_ACCESS_KEY=""), 4, "AWS_SECRET_ACCESS_KEY")
    fails(push_good(tmp_path, AWS_PROFILE="unknown"), 2, "unknown", "list-profiles")
    fails(push_good(tmp_path, "--profile", "unknown"), 2, "unknown", "list-profiles")
    fails(push_good(tmp_path, AWS_CONFIG_FILE=str(broken)), 2, str(broken))


def test_a_region_that_is_no_region_is_a_usage_error(tmp_path: Path) -> None:
    fails(push_good(tmp_path, "--region", "no where!"), 2, "no where!")
    fails(push_good(tmp_path, "--region", "eu-west-1\n"), 2, r"'eu-west-1\n' is not a region; give --region")


def test_without_credentials_a_batch_fails_in_one_line_and_status_4(tmp_path: Path) -> None:
    paths = [good().write(tmp_path / name) for name in ("one", "two", "three")]
    words = ["push", *map(str, paths), "--to", "x", "--progress", "none"]
    fails(run_here(*words, AWS_REGION="eu-west-1", AWS_ENDPOINT_URL_ECR="http://127.0.0.1:9"), 4, "no AWS credentials")


@pytest.mark.parametrize("url", ["nonsense", "127.0.0.1:4510", "ftp://127.0.0.1", "http://", "http://127.0.0.1:port"])
def test_an_endpoint_that_is_no_url_is_a_usage_error(tmp_path: Path, url: str) -> None:
    fails(push_good(tmp_path, "--endpoint-url", url), 2, repr(url), "http(s)://HOST[:PORT]")


def test_an_endpoint_that_cannot_be_reached_is_named(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        for url in (f"http://127.0.0.1:{closed.getsockname()[1]}", "http://ecr.invalid"):
            fails(push_good(tmp_path, "--endpoint-url", url), 1, url, "check the endpoint and the network")


@contextmanager
def answering(reply: bytes) -> Iterator[str]:
    """A server that answers each connection with these bytes and closes it; its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.settimeout(5)
                    if reply:
                        connection.recv(65536)
                        connection.sendall(reply)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def http(status: str, body: bytes, kind: str = "text/html") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + body


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(http("404 Not Found", b"<html><body>Not Found</body></html>"), id="404 in HTML"),
        pytest.param(http("403 Forbidden", b""), id="403 without a body"),
        pytest.param(http("200 OK", b"<html><body>It works!</body></html>"), id="200 in HTML"),
        pytest.param(http("200 OK", b"[]", "application/json"), id="200 with a list"),
        pytest.param(http("200 OK", b"{}", "application/json"), id="200 with an object"),
        pytest.param(b"SSH-2.0-OpenSSH_9.6\r\n", id="SSH"),
        pytest.param(bytes(range(256)), id="garbage"),
        pytest.param(b"", id="nothing"),
    ],
)
def test_an_endpoint_that_speaks_no_ecr_is_named(tmp_path: Path, reply: bytes) -> None:
    with answering(reply) as url:
        fails(push_good(tmp_path, "--endpoint-url", url), 1, url)


# What ECR refuses


def test_a_missing_repository_is_named_with_the_option_that_creates_it(server: Server, tmp_path: Path) -> None:
    folder = good().write(tmp_path / "good")
    ran = run_here("push", folder, "rubbish/absent:1", "--progress", "none", **server.environment)
    fails(ran, 1, "rubbish/absent", "--create-repository")


def test_an_immutable_tag_that_names_another_image_fails_with_both_digests(server: Server, tmp_path: Path) -> None:
    client, name = client_of(server.url), "rubbish/immutable"
    client.create_repository(repositoryName=name, imageTagMutability="IMMUTABLE")
    first, second = good(), im.Layout()
    second.tag(second.image(B), "1")
    words = [name + ":1", "--progress", "none"]
    assert run_here("push", first.write(tmp_path / "first"), *words, **server.environment).status == 0
    ran = run_here("push", second.write(tmp_path / "second"), *words, **server.environment)
    fails(ran, 1, f"{name}:1", *(str(layout.manifests[0]["digest"]) for layout in (first, second)), "another tag")
    assert [image["imageDigest"] for image in images_in(server, name)] == [first.manifests[0]["digest"]]


async def test_a_denied_action_is_named_and_leaves_no_image(server: Server, tmp_path: Path) -> None:
    folder = good().write(tmp_path / "good")
    denial = "User: arn:aws:iam::000000000000:user/ci is not authorized to perform: ecr:InitiateLayerUpload"
    async with relay_to(server.url) as relay:
        relay.plan("InitiateLayerUpload", *[refused("AccessDeniedException", denial)] * 9)
        environment = {**server.environment, "AWS_ENDPOINT_URL_ECR": relay.url}
        words = ["push", folder, "rubbish/denied:1", "--create-repository", "--progress", "none"]
        ran = await to_thread.run_sync(partial(run_cli, *words, **environment))
        fails(ran, 4, denial, "policy")
        assert relay.seen["PutImage"] == 0
    assert await to_thread.run_sync(images_in, server, "rubbish/denied") == []


@pytest.fixture
def cramped(tmp_path: Path) -> Iterator[tuple[Server, Callable[[], None]]]:
    """An emulator that cannot write a file of more than 1 MiB, as on a full disk; and what makes room."""
    process = subprocess.Popen(
        [sys.executable, "-m", "asyncpush", "serve", "--port", "0", "--data", str(tmp_path / "data")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=cli_environment(),
    )
    assert process.stdout is not None
    with process.stdout:
        url = process.stdout.readline().rpartition("=")[2].strip()
        keys = {"AWS_REGION": "eu-west-1", "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
        _, most = resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (2**20, resource.RLIM_INFINITY))
        yield (
            Server(url, {**keys, "AWS_ENDPOINT_URL_ECR": url}),
            partial(resource.prlimit, process.pid, resource.RLIMIT_FSIZE, (most, most)),
        )
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 0


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="only Linux can limit another process")
def test_a_push_to_a_full_disk_fails_and_succeeds_once_there_is_room(
    cramped: tuple[Server, Callable[[], None]], tmp_path: Path
) -> None:
    """A registry with a full disk fails the push; the push succeeds once there is room."""
    server, make_room = cramped
    layout = im.Layout()
    large = layout.blob(os.urandom(2_000_000), im.LAYER)
    folder = layout.tag(layout.image(A, more=[large]), "1").write(tmp_path / "large")
    words = ["push", folder, "rubbish/full:1", "--create-repository", "--progress", "none"]
    fails(run_here(*words, **server.environment), 1, "UploadLayerPart")
    assert images_in(server, "rubbish/full") == []
    make_room()
    ran = run_here(*words, **server.environment)
    assert ran.status == 0, ran.err
    assert len(images_in(server, "rubbish/full")) == 1


def test_a_source_without_permission_is_named(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "secret.tar"
    path.write_bytes(good().archive())
    path.chmod(0)
    ran = server.run("push", path, "rubbish/secret:1", "--create-repository", bound=True)
    fails(ran, 1, str(path), "Permission denied")


# Small sources that ask for much memory


def test_manifests_above_the_memory_limit_are_refused_with_the_limit(server: Server, tmp_path: Path) -> None:
    """Manifests that take more memory than all sources together may use are refused; the error has the limit."""
    layout = im.Layout()
    config, layer = layout.blob(im.config_json([A]), im.CONFIG), layout.blob(A, im.RAW_LAYER)
    body = {"schemaVersion": 2, "mediaType": im.MANIFEST, "config": config, "layers": [layer]}
    padded = [json.dumps({**body, "annotations": {"n": str(at)}}).encode().ljust(4 * 2**20) for at in range(14)]
    children = [layout.blob(raw, im.MANIFEST) for raw in padded]
    path = tmp_path / "many.tar.gz"
    path.write_bytes(gzip.compress(layout.tag(layout.index(*children), "1").archive(), 1))
    refuses(server, path, "32 MiB of memory")
    good_one = tmp_path / "good.tar"
    good_one.write_bytes(good().archive())
    ran = run_here("push", good_one, "rubbish/kept:1", "--create-repository", **server.environment)
    assert ran.status == 0, ran.err


def test_a_list_that_names_too_much_is_refused_with_the_limit(server: Server, tmp_path: Path) -> None:
    saved = im.DockerSave().image(A, tags=[f"app:{at}" for at in range(10_001)])
    path = tmp_path / "names.tar"
    path.write_bytes(saved.archive())
    refuses(server, path, "10001 images", "10000")
    values = tmp_path / "values.tar.gz"
    values.write_bytes(gzip.compress(im.tar({"manifest.json": b"[" + b"{}," * 300_001 + b"{}]"}), 1))
    refuses(server, values, str(values), "at most 300000 are read")


def test_a_gzip_header_may_be_of_any_length(server: Server, tmp_path: Path) -> None:
    def with_header(data: bytes) -> bytes:
        packed = gzip.compress(data, 1, mtime=0)
        extra = (60_000).to_bytes(2, "little") + b"e" * 60_000
        return (
            packed[:3]
            + bytes([2 | 4 | 8 | 16])
            + packed[4:10]
            + extra
            + (b"n" * 2**21 + b"\0") * 2
            + b"hh"
            + packed[10:]
        )

    whole, layer = tmp_path / "whole.tar.gz", tmp_path / "layer.tar"
    whole.write_bytes(with_header(im.DockerSave().image(A, tags=["x:1"]).archive()))
    layer.write_bytes(im.DockerSave().image(A, tags=["x:1"], stored=[with_header(A)]).archive())
    for at, path in enumerate((whole, layer)):
        ran = run_here("push", path, f"rubbish/header:{at}", "--create-repository", **server.environment)
        assert ran.status == 0, ran.err
