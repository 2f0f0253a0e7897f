"""The command line as its users meet it: processes, with arguments, signals, pipes and terminals."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, ClassVar

import anyio
import pytest
from anyio import to_thread
from anyio.streams.text import TextReceiveStream

from support import images as im
from support.aws import token
from support.commands import Ran, Server, cli_environment, run_cli, run_here
from support.processes import ended, started
from support.relay import caught, relay_to
from support.servers import serving_thread

SENDING = ("InitiateLayerUpload", "UploadLayerPart", "CompleteLayerUpload", "PutImage", "CreateRepository")

ERROR = "asyncpush: error: "


def layout(folder: Path, *texts: str, tag: str = "1.0", size: int = 300) -> Path:
    """An OCI layout with one image, one layer a text."""
    made = im.Layout()
    made.tag(made.image(*(im.layer_tar(text, size) for text in texts)), tag)
    return made.write(folder)


def requests_of(server: Server) -> Counter[str]:
    with urllib.request.urlopen(f"{server.url}/_emulator/requests") as answer:
        return Counter(json.load(answer)["counts"])


def fetched(server: Server, path: str) -> bytes:
    asked = urllib.request.Request(f"{server.url}/v2/{path}", headers={"Authorization": f"Basic {token(server.url)}"})
    with urllib.request.urlopen(asked) as answer:
        body: bytes = answer.read()
        return body


def held(server: Server, repository: str, reference: str) -> dict[str, Any]:
    """The manifest that the emulator serves, once every byte that it names was read back and hashed."""
    manifest: dict[str, Any] = json.loads(fetched(server, f"{repository}/manifests/{reference}"))
    for child in manifest.get("manifests", ()):
        held(server, repository, child["digest"])
    for blob in [manifest["config"], *manifest["layers"]] if "config" in manifest else ():
        assert im.digest(fetched(server, f"{repository}/blobs/{blob['digest']}")) == blob["digest"]
    return manifest


def tags(server: Server, repository: str) -> list[str]:
    try:
        found: list[str] = json.loads(fetched(server, f"{repository}/tags/list"))["tags"]
    except urllib.error.HTTPError as error:
        error.close()
        return []
    return found


def here(server: Server, *words: str | Path, **environment: str) -> Ran:
    """Run a command against *server* in this process."""
    return run_here(*words, **{**server.environment, **environment})


def root_digest(folder: Path) -> str:
    digest: str = json.loads((folder / "index.json").read_text())["manifests"][0]["digest"]
    return digest


SHARED = """--create-repository --dry-run --region --profile --endpoint-url --max-layers --max-memory --part-size
--output --progress --quiet -q --verbose -v"""
LAYERS = "--platform --available-platforms --compression --compression-level --push-foreign-layers"


# What it says about itself


def test_it_says_its_version_in_both_spellings() -> None:
    for flag in ("--version", "-V"):
        ran = run_cli(flag)
        assert (ran.status, ran.err) == (0, "")
        assert re.fullmatch(r"asyncpush \d+\.\d+\S*\n", ran.out)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ((), "push layers serve --version --help"),
        (
            ("push",),
            f"{SHARED} {LAYERS} --to oci: docker-archive:",
        ),
        (
            ("layers",),
            f"{SHARED} --repository-name --registry-id",
        ),
        (("serve",), "--host --port --data --tls-cert --tls-key --credentials --no-verify-signatures --verbose -v"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_help_names_every_option_in_80_columns(command: tuple[str, ...], words: str) -> None:
    ran = run_cli(*command, "--help", COLUMNS="80")
    assert (ran.status, ran.err) == (0, "")
    assert max(len(line) for line in ran.out.splitlines()) <= 80
    for word in words.split():
        assert re.search(rf"(?<![\w-]){re.escape(word)}(?!-\w)", ran.out), word


def test_a_mistyped_command_or_option_is_corrected() -> None:
    for arguments, meant in ((["pusj"], "push"), (["push", "x", "y", "--dry-rum"], "--dry-run")):
        ran = run_cli(*arguments)
        assert (ran.status, ran.out) == (2, "")
        assert ran.err.startswith(ERROR)
        assert ran.err.count("\n") == 1
        assert re.search(rf"did you mean \W?{meant}\b", ran.err, re.IGNORECASE)
        assert "--help" in ran.err


# Pushing


def test_a_push_prints_the_destination_with_its_digest(server: Server, tmp_path: Path) -> None:
    """A push prints the destination with its digest, and the registry holds it."""
    source = layout(tmp_path / "app", "one", "two")
    first = server.run("push", source, "cli/held:2", "--create-repository")
    assert (first.status, first.out) == (0, f"{server.host}/cli/held:2@{root_digest(source)}\n")
    assert "pushed" in first.err
    assert len(held(server, "cli/held", "2")["layers"]) == 2
    before = requests_of(server)
    second = here(server, "push", f"oci:{source}:1.0", f"{server.host}/cli/held:2")
    assert (second.status, second.out) == (0, first.out)
    assert "already there" in second.err
    asked = requests_of(server) - before
    assert not any(asked[operation] for operation in SENDING), asked
    assert asked.total() <= 2
    assert here(server, "verify", first.out.strip()).status == 0


def test_without_a_tag_it_is_latest(server: Server, tmp_path: Path) -> None:
    source = layout(tmp_path / "app", "latest")
    ran = here(server, "push", source, "cli/latest", "--create-repository", "-q")
    assert (ran.status, ran.out, ran.err) == (0, f"{server.host}/cli/latest:latest@{root_digest(source)}\n", "")
    assert tags(server, "cli/latest") == ["latest"]


def test_json_says_what_was_sent_and_what_was_there(server: Server, tmp_path: Path) -> None:
    source = layout(tmp_path / "app", "json one", "json two")
    sizes = [path.stat().st_size for path in (source / "blobs" / "sha256").iterdir()]
    manifest_size = json.loads((source / "index.json").read_text())["manifests"][0]["size"]
    wanted = {"sent": (3, sum(sizes) - manifest_size), "present": (0, 0)}
    for outcome in ("pushed", "present"):
        ran = here(
            server, "push", source, "cli/json:1", "--create-repository", "--output", "json", "--progress", "none"
        )
        assert (ran.status, ran.err) == (0, "")
        document = json.loads(ran.out)
        (image,) = document["images"]
        assert document["version"] == 1
        assert (image["outcome"], image["destination"]) == (outcome, "cli/json:1")
        assert (image["digest"], image["mediaType"]) == (root_digest(source), im.MANIFEST)
        assert (image["layersSent"], image["bytesSent"]) == wanted["sent"]
        assert (image["layersPresent"], image["bytesPresent"]) == wanted["present"]
        totals = document["totals"]
        assert (totals["images"], totals["failed"]) == (1, 0)
        assert (list(document["timeline"]["images"]), len(document["timeline"]["layers"])) == (
            ["cli/json:1"],
            wanted["sent"][0],
        )
        assert all(totals[name] == image[name] for name in ("layersSent", "bytesSent", "layersPresent", "bytesPresent"))
        wanted = {"sent": wanted["present"], "present": wanted["sent"]}


def test_a_dry_run_says_what_would_be_sent_and_sends_nothing(server: Server, tmp_path: Path) -> None:
    source = layout(tmp_path / "app", "dry")
    before = requests_of(server)
    refused = here(server, "push", source, "cli/dry:1", "--dry-run")
    assert (refused.status, refused.out) == (1, "")
    assert "--create-repository" in refused.err
    planned = here(server, "push", source, "cli/dry:1", "--dry-run", "--create-repository")
    assert planned.status == 0
    assert planned.out.startswith(f"cli/dry:1@{root_digest(source)}")
    assert "would send 2 blobs" in planned.out
    asked = requests_of(server) - before
    assert not any(asked[operation] for operation in SENDING), asked
    assert tags(server, "cli/dry") == []


def test_a_batch_takes_names_and_tags_from_the_sources(server: Server, tmp_path: Path) -> None:
    app = layout(tmp_path / "app", "batch app", tag="3.1")
    saved = im.DockerSave().image(im.layer_tar("saved"), tags=["shop/web:1", "registry.example.com/shop/web:stable"])
    archive = tmp_path / "saved.tar"
    archive.write_bytes(saved.archive())
    ran = here(server, "push", app, archive, "--to", "cli/batch/", "--create-repository")
    assert ran.status == 0, ran.err
    lines = dict(line.rsplit("@", 1) for line in ran.references.splitlines())
    assert list(lines) == ["cli/batch/app:3.1", "cli/batch/shop/web:1", "cli/batch/shop/web:stable"]
    assert lines["cli/batch/shop/web:1"] == lines["cli/batch/shop/web:stable"]
    assert tags(server, "cli/batch/shop/web") == ["1", "stable"]
    held(server, "cli/batch/shop/web", "stable")
    held(server, "cli/batch/app", "3.1")


def test_a_batch_that_cannot_be_meant_sends_nothing(server: Server, tmp_path: Path) -> None:
    one, two = layout(tmp_path / "a" / "app", "here"), layout(tmp_path / "b" / "app", "there")
    nameless = saved_as(tmp_path / "nameless.tar")
    before = requests_of(server)
    both = here(server, "push", one, two, "--to", "cli/clash", "--create-repository")
    unnamed = here(server, "push", nameless, "--to", "cli/clash", "--create-repository")
    assert (both.status, both.out) == (unnamed.status, unnamed.out) == (2, "")
    assert both.err.count("\n") == unnamed.err.count("\n") == 1
    assert all(str(path) in both.err for path in (one, two))
    assert "cli/clash/app:1.0" in both.err
    assert str(nameless) in unnamed.err
    assert requests_of(server) == before


def saved_as(path: Path, *names: str) -> Path:
    """A docker-archive of one image with these names."""
    path.write_bytes(im.DockerSave().image(im.layer_tar("saved"), tags=list(names)).archive())
    return path


def test_of_a_batch_only_the_image_fails_whose_name_is_no_destination(server: Server, tmp_path: Path) -> None:
    good, nameless = saved_as(tmp_path / "good.tar", "good:1"), saved_as(tmp_path / "nameless.tar")
    plus = saved_as(tmp_path / "plus.tar", "app:1.0+b", "app:1.0")
    ran = here(server, "push", good, plus, nameless, "--to", "cli/names", "--create-repository", "--output", "json")
    alone = here(server, "push", plus, nameless, "--to", "cli/no/", "--platform", "linux/s390x")

    images = json.loads(ran.out)["images"]
    assert ran.status == 1
    assert {each["destination"]: each["outcome"] for each in images if each["destination"]} == {
        "cli/names/good:1": "pushed",
        "cli/names/app:1.0": "pushed",
    }
    assert sorted(each["source"].rpartition("/")[2] for each in images if not each["destination"]) == [
        "nameless.tar",
        "plus.tar:app:1.0+b",
    ]
    errors = [line for line in ran.err.splitlines() if line.startswith(ERROR)]
    assert [str(plus) in errors[0], "'1.0+b' is not a tag" in errors[0], str(nameless) in errors[1]] == [True] * 3
    assert (alone.status, alone.out, alone.err.count(ERROR)) == (2, "", 2)
    assert all(str(path) in alone.err for path in (plus, nameless))


def test_one_image_under_two_names_of_one_destination_goes_once(server: Server, tmp_path: Path) -> None:
    names = ("localhost/app:1.0", "registry.corp.example/app:1.0", "docker.io/library/app:1.0")
    ran = here(
        server, "push", saved_as(tmp_path / "a.tar", *names), "--to", "cli/fold", "--create-repository", "--output=json"
    )

    assert ran.status == 0, ran.err
    assert [image["destination"] for image in json.loads(ran.out)["images"]] == ["cli/fold/app:1.0"]
    assert ran.err.count("is the same image as docker-archive:") == 2
    assert all(name in ran.err for name in ("localhost/app:1.0", "registry.corp.example/app:1.0"))


def test_what_fails_in_a_batch_does_not_stop_the_rest(server: Server, tmp_path: Path) -> None:
    good = layout(tmp_path / "good", "good")
    damaged = layout(tmp_path / "damaged", "damaged")
    layer = max((damaged / "blobs" / "sha256").iterdir(), key=lambda path: path.read_bytes()[:2] == b"\x1f\x8b")
    layer.write_bytes(bytes([layer.read_bytes()[0] ^ 1]) + layer.read_bytes()[1:])
    ran = server.run(
        "push", tmp_path / "missing", damaged, good, "--to", "cli/some", "--create-repository", "--output", "json"
    )
    assert ran.status == 1
    document = json.loads(ran.out)
    assert sorted(image["outcome"] for image in document["images"]) == ["failed", "failed", "pushed"]
    assert (document["totals"]["images"], document["totals"]["failed"]) == (3, 2)
    errors = [line for line in ran.err.splitlines() if line.startswith(ERROR)]
    assert len(errors) == 2
    assert str(tmp_path / "missing") in errors[0]
    assert str(damaged) in errors[1]
    assert tags(server, "cli/some/good") == ["1.0"]
    assert tags(server, "cli/some/damaged") == []


def test_a_single_failure_is_told_once(server: Server, tmp_path: Path) -> None:
    ran = here(server, "push", layout(tmp_path / "app", "x"), "cli/absent:1")
    assert (ran.status, ran.out) == (1, "")
    assert ran.err.startswith(ERROR)
    assert ran.err.count("\n") == 1
    assert ran.err.count("cli/absent") == 1


def test_a_platform_is_picked_from_an_index(server: Server, tmp_path: Path) -> None:
    made = im.Layout()
    children = [
        im.at(made.image(im.layer_tar(arch), platform=f"linux/{arch}"), f"linux/{arch}") for arch in ("amd64", "arm64")
    ]
    source = made.tag(made.index(*children), "1").write(tmp_path / "multi")
    one = here(server, "push", source, "cli/multi:arm", "--platform", "linux/arm64", "--create-repository")
    assert (one.status, one.references) == (0, f"cli/multi:arm@{children[1]['digest']}\n")
    every = here(server, "push", source, "cli/multi:all")
    assert (every.status, every.references) == (0, f"cli/multi:all@{root_digest(source)}\n")
    assert len(held(server, "cli/multi", "all")["manifests"]) == 2
    none = here(server, "push", source, "cli/multi:none", "--platform", "linux/s390x")
    assert none.status == 2
    assert "linux/amd64, linux/arm64" in none.err


def test_standard_input_may_be_a_pipe_or_a_file(server: Server, tmp_path: Path) -> None:
    archive = tmp_path / "app.tar"
    archive.write_bytes(im.DockerSave().image(im.layer_tar("stdin"), tags=["app:1"]).archive())
    piped = server.run("push", "-", "cli/stdin:1", "--create-repository", stdin=archive.read_bytes())
    assert piped.status == 0, piped.err
    assert "standard input" in piped.err
    with archive.open("rb") as file:
        redirected = subprocess.run(
            [sys.executable, "-m", "asyncpush", "push", "-", "cli/stdin:1", "-q"],
            stdin=file,
            capture_output=True,
            env=cli_environment(**server.environment),
            check=False,
        )
    assert (redirected.returncode, redirected.stderr) == (0, b"")
    assert redirected.stdout.decode() == piped.out
    held(server, "cli/stdin", "1")


def test_an_image_is_pushed_under_several_tags_and_its_layers_once(server: Server, tmp_path: Path) -> None:
    source = layout(tmp_path / "app", "tags")
    ran = here(server, "push", source, "cli/tags:1.4.2", "--tag", "1.4", "--tag", "latest", "--create-repository", "-q")
    assert ran.status == 0, ran.err
    assert sorted(line.partition("@")[0] for line in ran.references.splitlines()) == [
        "cli/tags:1.4",
        "cli/tags:1.4.2",
        "cli/tags:latest",
    ]
    for tag in ("1.4.2", "1.4", "latest"):
        held(server, "cli/tags", tag)
    alone = here(server, "push", source, "cli/tags", "--tag", "9", "-q")
    assert alone.references.startswith("cli/tags:9@")
    for words in (("cli/tags", "--tag", "a b"), ("--to", "cli", "--tag", "1")):
        refused = here(server, "push", source, *words)
        assert refused.status == 2, refused.err
        assert "--tag" in refused.err or "'a b' is not a tag" in refused.err


def test_json_progress_is_one_object_a_line_failures_too(server: Server, tmp_path: Path) -> None:
    source = layout(tmp_path / "app", "events")
    ran = here(server, "push", source, "cli/events:1", "--create-repository", "--progress", "json")
    assert ran.status == 0
    kinds = [json.loads(line)["type"] for line in ran.err.splitlines()]
    assert kinds[0] == "image-started"
    assert kinds[-2:] == ["image-done", "end"]
    assert kinds.count("layer-done") == 2
    failed = here(server, "push", source, "cli/no-events:1", "--progress", "json")
    *events, error = failed.err.splitlines()
    assert [json.loads(line)["type"] for line in events] == ["image-started", "image-failed", "end"]
    assert error.startswith(ERROR)


# Raw layers


def test_layers_print_digests_as_sha256sum_does_and_go_once(server: Server, tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.tar.gz", "b.tar.gz", "same as a.tar.gz")]
    for file, data in zip(files, (b"layer a" * 99, b"layer b" * 99, b"layer a" * 99), strict=True):
        file.write_bytes(data)
    words = ["layers", *files, "--repository-name", "cli/layers", "--create-repository"]
    expected = "".join(f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}  {file}\n" for file in files)
    before = requests_of(server)
    dry = here(server, *words, "--dry-run")
    assert (dry.status, dry.out) == (0, expected)
    assert not any((requests_of(server) - before)[operation] for operation in SENDING)
    first = here(server, *words)
    assert (first.status, first.out) == (0, expected)
    sent = requests_of(server) - before
    assert [sent[name] for name in SENDING] == [2, 2, 2, 0, 1]
    second = here(server, *words, "--output", "json", "--progress", "none")
    assert (second.status, second.err) == (0, "")
    document = json.loads(second.out)
    assert document["version"] == 1
    assert [(layer["digest"], layer["file"], layer["outcome"]) for layer in document["layers"]] == [
        (*line.split("  ", 1), "present") for line in expected.splitlines()
    ]
    assert [layer["size"] for layer in document["layers"]] == [file.stat().st_size for file in files]
    again = requests_of(server) - before - sent
    assert not any(again[operation] for operation in SENDING), again


# Where it goes


class EmptyEcr(BaseHTTPRequestHandler):
    """An ECR without repositories that notes who asks."""

    asked: ClassVar[list[str]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        scope = re.search(r"Credential=([^/]+)/\d+/([^/]+)/ecr/", self.headers["Authorization"])
        assert scope
        self.asked.append(" ".join([scope[1], scope[2], *filter(None, [body.get("registryId")])]))
        answer = b'{"__type":"RepositoryNotFoundException","message":"none"}'
        self.send_response(400)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def empty_ecr() -> Iterator[str]:
    with serving_thread(EmptyEcr) as port:
        yield f"http://127.0.0.1:{port}"


HOST = "123456789012.dkr.ecr.eu-west-1.amazonaws.com"


@pytest.mark.parametrize(
    ("expected", "to", "options", "environment"),
    [
        ("KEY af-south-1", "app", "", {}),
        ("KEY eu-north-1", "app", "", {"AWS_DEFAULT_REGION": "eu-north-1"}),
        ("KEY us-east-2", "app", "", {"AWS_DEFAULT_REGION": "eu-north-1", "AWS_REGION": "us-east-2"}),
        ("KEY ap-south-1", "app", "--region ap-south-1", {"AWS_REGION": "us-east-2"}),
        ("TEAM sa-east-1", "app", "", {"AWS_PROFILE": "team", "AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}),
        ("KEY eu-west-1 123456789012", f"{HOST}/app", "--region us-west-2", {"AWS_REGION": "us-east-2"}),
    ],
)
def test_region_and_credentials_are_found_where_every_aws_tool_finds_them(
    empty_ecr: str, tmp_path: Path, expected: str, to: str, options: str, environment: dict[str, str]
) -> None:
    config = tmp_path / "config"
    config.write_text(
        "[profile team]\nregion = sa-east-1\naws_access_key_id = TEAM\naws_secret_access_key = secret\n"
        "[default]\nregion = af-south-1\n"
    )
    keys = {"AWS_ACCESS_KEY_ID": "KEY", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_CONFIG_FILE": str(config)}
    words = ["push", layout(tmp_path / "app", "regions"), to, "--dry-run", "--create-repository", *options.split()]
    EmptyEcr.asked.clear()
    ran = run_here(*words, "-q", **{**keys, "AWS_ENDPOINT_URL_ECR": empty_ecr, **environment})
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.startswith(f"{to}:latest@sha256:")
    assert set(EmptyEcr.asked) == {expected}


def test_a_registry_host_is_part_of_the_result(server: Server, tmp_path: Path) -> None:
    source = layout(tmp_path / "app", "host")
    ran = here(server, "push", source, f"{HOST}/cli/host:1", "--create-repository")
    assert (ran.status, ran.out) == (0, f"{HOST}/cli/host:1@{root_digest(source)}\n")
    batch = here(server, "push", source, "--to", f"{HOST}/cli", "--create-repository", AWS_REGION="")
    assert (batch.status, batch.out) == (0, f"{HOST}/cli/app:1.0@{root_digest(source)}\n")
    assert tags(server, "cli/host") == ["1"]


# Interruption


async def until(stream: anyio.abc.ObjectReceiveStream[str], end: str) -> str:
    """Read *stream* up to *end*; unbuffered, a line may come in pieces."""
    text = ""
    while not text.endswith(end):
        text += await stream.receive()
    return text


@pytest.mark.parametrize(
    ("number", "operation", "status"),
    [
        (signal.SIGINT, "UploadLayerPart", 130),
        (signal.SIGTERM, "CompleteLayerUpload", 143),
        (signal.SIGINT, "PutImage", 130),
    ],
)
async def test_a_signal_ends_a_push_in_one_line_and_it_can_be_repeated(
    server: Server, tmp_path: Path, number: signal.Signals, operation: str, status: int
) -> None:
    """A signal ends a push with one line, and the same command then succeeds."""
    name = f"cli/signal-{operation.lower()}"
    source = layout(tmp_path / "app", operation, "more")
    words = ["push", str(source), f"{name}:1", "--create-repository", "--progress", "plain"]
    async with relay_to(server.url) as relay:
        arrived = anyio.Event()
        relay.plan(operation, caught(arrived))
        environment = cli_environment(**{**server.environment, "AWS_ENDPOINT_URL_ECR": relay.url})
        async with started("-m", "asyncpush", *words, env=environment) as process:
            with anyio.fail_after(20):
                await arrived.wait()
            process.send_signal(number)
            code, out, err = await ended(process)
    assert (code, out) == (status, "")
    assert err.startswith("asyncpush: interrupted")
    assert err.count("\n") == 1
    assert await to_thread.run_sync(tags, server, name) == []
    again = await to_thread.run_sync(partial(server.run, *words))
    assert (again.status, again.references) == (0, f"{name}:1@{root_digest(source)}\n")
    await to_thread.run_sync(held, server, name, "1")


async def test_a_signal_ends_waiting_for_standard_input(server: Server) -> None:
    environment = cli_environment(**server.environment)
    async with started("-m", "asyncpush", "push", "-", "cli/stdin:1", env=environment) as process:
        assert process.stderr is not None
        with anyio.fail_after(20):
            first = await until(TextReceiveStream(process.stderr), "\n")
        process.send_signal(signal.SIGINT)
        status, out, err = await ended(process)
    assert "standard input" in first
    assert (status, out) == (130, "")
    assert err.count("\n") == 1


@pytest.mark.parametrize("stubborn", ["await anyio.sleep_forever()", "while True: pass"])
async def test_a_second_signal_ends_at_once(stubborn: str) -> None:
    program = (
        "import signal, sys, anyio\n"
        "from asyncpush.cli.run import run\n"
        "async def stubborn():\n"
        "    print('ready', flush=True)\n"
        "    try:\n"
        "        await anyio.sleep_forever()\n"
        "    finally:\n"
        "        print('closing', flush=True)\n"
        "        with anyio.CancelScope(shield=True):\n"
        f"            {stubborn}\n"
        "sys.exit(run(stubborn))\n"
    )
    async with started("-c", program, env=cli_environment()) as process:
        assert process.stdout is not None
        with anyio.fail_after(20):
            lines = TextReceiveStream(process.stdout)
            await until(lines, "ready\n")
            process.send_signal(signal.SIGINT)
            await until(lines, "closing\n")
        process.send_signal(signal.SIGINT)
        status, _, err = await ended(process)
    assert (status, err) == (-signal.SIGINT, "")


# Pipes and terminals


def shell(server: Server, script: str) -> subprocess.CompletedProcess[str]:
    """Run *script* in bash; ``$PUSH`` is the command."""
    environment = cli_environment(**server.environment, PUSH=f"{sys.executable} -m asyncpush push", PYTHONUNBUFFERED="")
    return subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, timeout=60, env=environment, check=False
    )


def test_a_reader_who_leaves_breaks_no_push(server: Server, tmp_path: Path) -> None:
    source = layout(tmp_path / "app", "pipe")
    here(server, "push", source, "cli/pipe:1", "--create-repository")
    reader = "exec {r}> >(exec true); sleep 0.1"  # a pipe whose reader has gone
    ran = shell(
        server,
        f"{reader}\n"
        f"$PUSH {source} cli/pipe:1 -q >&$r; echo stdout $? >&2\n"
        f"$PUSH {source} cli/pipe:1 >&- 2>&-; echo both $? >&2\n"
        f"$PUSH {source} cli/none:1 2>&$r; echo failed $? >&2\n",
    )
    assert ran.stderr.splitlines() == ["stdout 0", "both 0", "failed 1"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_result_that_cannot_be_written_is_a_failure(server: Server, tmp_path: Path) -> None:
    source = layout(tmp_path / "app", "full")
    words = (f"push {source} cli/full:1 --create-repository -q", "help push", "--help", "--version")
    script = "\n".join(f"{sys.executable} -m asyncpush {line} >/dev/full; echo $? >&2" for line in words)
    lines = shell(server, script).stderr.splitlines()
    assert lines[1::2] == ["1"] * len(words)
    for what, line in zip(("result", "result", "help", "version"), lines[::2], strict=True):
        assert re.fullmatch(rf"{ERROR}the {what} can't be written: No space left on device(;.*)?", line)


def test_each_result_of_many_images_is_seen_once(server: Server, tmp_path: Path) -> None:
    """A program gets them all, a person at a terminal the new ones; a count stands for the others, and comes last."""
    made = im.Layout()
    for number in range(5):
        made.tag(made.image(im.layer_tar("base"), im.layer_tar(f"app {number}")), f"{number}")
    words = ("push", made.write(tmp_path / "many"), "--to", "cli", "--create-repository")
    first, second, verbose = (here(server, *words, *more) for more in ((), (), ("-v",)))
    names = [f"cli/many:{number}" for number in range(5)]
    for ran in (first, second, verbose):
        assert [line.partition("@")[0].partition("/")[2] for line in ran.out.splitlines()] == names
    [pushed], [present] = first.err.splitlines(), second.err.splitlines()
    assert pushed.startswith("asyncpush: 5 images: 5 pushed; ")
    assert " shared; " in pushed
    assert present.startswith("asyncpush: 5 images: 5 already there; ")
    *each, last = verbose.err.splitlines()
    assert sorted(line.split()[-1] for line in each if line.startswith("already there ")) == names
    assert "asyncpush: BatchGetImage: " in "".join(each)
    assert last.startswith("asyncpush: 5 images: 5 already there; ")

    for more, shown in (((), 0), (("-v",), 5)):
        status, drawn = in_terminal(server, (200, 24), *words, *more, seen=True)
        assert (status, drawn.count("@sha256:"), drawn.count("5 images: 5 already there")) == (0, shown, 1)
        assert drawn.count("cli/many:0") == min(shown, 1)


def in_terminal(
    server: Server, size: tuple[int, int], *words: str | Path, seen: bool = False, **environment: str
) -> tuple[int, str]:
    """Run a command whose standard error is a terminal of *size* (columns, lines): exit status, what it has drawn.

    Standard output goes there, too, if it is to be *seen*.
    """
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", size[1], size[0], 0, 0))
    terminal = {"TERM": "xterm-256color", "COLUMNS": "", "CI": "", "FORCE_COLOR": "", "NO_COLOR": ""}
    process = subprocess.Popen(
        [sys.executable, "-m", "asyncpush", *map(str, words)],
        stdin=subprocess.DEVNULL,
        stdout=follower if seen else subprocess.DEVNULL,
        stderr=follower,
        env=cli_environment(**{**server.environment, **terminal, **environment}),
    )
    os.close(follower)
    drawn = b""
    with contextlib.suppress(OSError):  # the terminal fails once its last writer is gone
        while data := os.read(leader, 65536):
            drawn += data
    os.close(leader)
    return process.wait(timeout=20), drawn.decode()


@pytest.mark.parametrize("size", [(80, 24), (30, 8)])
def test_bars_leave_the_cursor_visible(server: Server, tmp_path: Path, size: tuple[int, int]) -> None:
    source = layout(tmp_path / "app", *(os.urandom(20_000).hex() for _ in range(12)), size=40_000)
    # Slow enough for bars, however fast the machine is.
    slow = ("--create-repository", "--bandwidth", "800KB/s")
    status, drawn = in_terminal(server, size, "push", source, f"cli/bars{size[0]}:1", *slow)
    assert status == 0
    assert "pushed" in drawn
    assert drawn.rindex("\x1b[?25h") > drawn.rindex("\x1b[?25l")


def test_a_failure_in_a_terminal_without_colour_is_one_line(server: Server, tmp_path: Path) -> None:
    """A failure in a terminal is one line, without colour where NO_COLOR asks for none."""
    source = layout(tmp_path / "app", "colour")
    colours = re.compile(r"\x1b\[(?:[0-9]+;)*(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])(?:;[0-9]+)*m")
    words = ("push", source, "cli/none-such:1", "--progress", "rich")
    status, drawn = in_terminal(server, (80, 24), *words, NO_COLOR="1")
    assert status == 1
    assert not colours.search(drawn)
    assert drawn.rfind("\x1b[?25h") >= drawn.rfind("\x1b[?25l")
    assert drawn.count("RepositoryNotFoundException") == 1


def test_a_missing_region_is_told_before_a_pipe_is_read() -> None:
    reader, writer = os.pipe()
    try:
        # Nobody ever writes: a command that reads first would wait for ever.
        with os.fdopen(reader, "rb") as pipe:
            ran = subprocess.run(
                [sys.executable, "-m", "asyncpush", "push", "-", "team/app:1"],
                stdin=pipe,
                capture_output=True,
                text=True,
                timeout=30,
                check=False,
                env=cli_environment(),
            )
    finally:
        os.close(writer)

    assert (ran.returncode, ran.stdout) == (2, "")
    assert "no region is set" in ran.stderr
