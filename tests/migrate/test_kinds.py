"""Migrations from all kinds of sources, through the command; skopeo and boto3 judge what arrived."""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import anyio
import pytest
from anyio import to_thread

from asyncpush.emulator import Emulator, KnownCredentials
from support.aws import KEYS, QUIRKS, REGION, judge, password
from support.commands import Ran, run_beside, run_cli
from support.images import DockerSave, Json, Layout, at, containerd_save
from support.migrations import layer
from support.passwords import HTPASSWD, PASSWORD, USER
from support.processes import wait_until_it_listens
from support.registry_server import basic

PLATFORMS = ("linux/amd64", "linux/arm64")


@dataclass
class Target:
    """An emulator that images go to, and a folder for the plan."""

    emulator: Emulator
    folder: Path
    environment: Mapping[str, str]

    def plan(self, *images: Json, **registries: Json) -> Path:
        """Write a plan for these images."""
        document = {
            "version": 1,
            "registries": registries,
            "targets": {"here": {"region": REGION, "endpoint_url": self.emulator.endpoint_url, "prefix": "mirror"}},
            "defaults": {"repository": {"create": True}},
            "images": list(images),
        }
        path = self.folder / "plan.json"
        path.write_text(json.dumps(document))
        return path

    async def migrate(self, path: Path | str, *words: str, stdin: bytes | None = None, **environment: str) -> Ran:
        """Run the command, while the emulator of this process answers it."""
        whole = {**self.environment, **environment}
        if stdin is None:
            return await run_beside("migrate", path, "--progress", "none", *words, **whole)
        return await to_thread.run_sync(
            lambda: run_cli("migrate", path, "--progress", "none", *words, stdin=stdin, **whole)
        )

    async def digest(self, skopeo: str, image: str, folder: Path) -> str:
        """The digest of an image in the target, all of whose bytes skopeo has read."""
        secret = await to_thread.run_sync(password, self.emulator.endpoint_url)
        host = self.emulator.endpoint_url.removeprefix("http://")
        source = ("--src-tls-verify=false", f"--src-creds=AWS:{secret}", f"docker://{host}/{image}")
        await anyio.run_process([skopeo, "copy", "-q", "--all", *source, f"dir:{folder}"])
        return f"sha256:{hashlib.sha256((folder / 'manifest.json').read_bytes()).hexdigest()}"


@pytest.fixture
async def target(tmp_path: Path) -> AsyncIterator[Target]:
    """The target; no test sees this machine's logins."""
    nobody = {"DOCKER_CONFIG": str(tmp_path / "nobody"), "REGISTRY_AUTH_FILE": "", "XDG_RUNTIME_DIR": ""}
    keys = {name.upper(): value for name, value in KEYS.items()}
    async with Emulator(tmp_path / "ecr", fsync=False, quirks=QUIRKS) as emulator:
        yield Target(emulator, tmp_path, {**keys, **nobody})


def index_in(layout: Layout) -> Json:
    """An index of two images."""
    images = [layout.image(layer(number, 300_000), platform=name) for number, name in enumerate(PLATFORMS)]
    return layout.index(*(at(image, name) for image, name in zip(images, PLATFORMS, strict=True)))


@dataclass(frozen=True)
class Protected:
    """A docker-registry that wants a password, and the index in it."""

    host: str
    index: Json


@pytest.fixture
async def protected(tmp_path: Path, need: Callable[[str], str], skopeo: str) -> AsyncIterator[Protected]:
    """A docker-registry that is filled by skopeo."""
    folder = tmp_path / "docker-registry"
    folder.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as free:
        host = f"127.0.0.1:{free.getsockname()[1]}"
    (folder / "htpasswd").write_text(f"{HTPASSWD}\n")
    (folder / "config.yml").write_text(
        f"version: 0.1\nstorage:\n  filesystem: {{rootdirectory: {folder}/held}}\n"
        f"auth:\n  htpasswd: {{realm: here, path: {folder}/htpasswd}}\nhttp:\n  addr: {host}\n"
    )
    layout = Layout()
    index = index_in(layout)
    layout.tag(index, "1").write(tmp_path / "filling")
    command = [need("docker-registry"), "serve", str(folder / "config.yml")]
    with (folder / "log").open("wb") as log:
        async with await anyio.open_process(command, stdout=log, stderr=log) as process:
            try:
                await to_thread.run_sync(wait_until_it_listens, host)
                into = ("--dest-tls-verify=false", f"--dest-creds={USER}:{PASSWORD}", f"docker://{host}/team/app:1")
                await anyio.run_process([skopeo, "copy", "-q", "--all", f"oci:{tmp_path}/filling:1", *into])
                yield Protected(host, index)
            finally:
                process.terminate()


async def test_docker_registry_with_a_password_from_the_environment(
    target: Target, protected: Protected, skopeo: str, tmp_path: Path
) -> None:
    credentials = {"username": USER, "password": "${SOURCE_PASSWORD}"}
    path = target.plan(
        {"from": f"{protected.host}/team/app"}, **{protected.host: {"plain_http": True, "credentials": credentials}}
    )
    unset = await target.migrate(path)
    wrong = await target.migrate(path, SOURCE_PASSWORD="nothing-like-it")
    done = await target.migrate(path, SOURCE_PASSWORD=PASSWORD)

    assert (unset.status, unset.out) == (2, "")
    assert "SOURCE_PASSWORD is not set" in unset.err
    assert wrong.status == 4
    assert f"refuses the credentials of '{USER}'" in wrong.err
    assert "nothing-like-it" not in wrong.err
    assert (done.status, done.references) == (0, f"mirror/team/app:1@{protected.index['digest']}\n"), done.err
    assert await target.digest(skopeo, "mirror/team/app:1", tmp_path / "judged") == protected.index["digest"]
    journal = await anyio.Path(path.with_suffix(".journal")).read_bytes()
    assert PASSWORD.encode() not in journal


async def test_docker_registry_with_a_login_of_docker(target: Target, protected: Protected, tmp_path: Path) -> None:
    secret = basic(USER, PASSWORD).removeprefix("Basic ")
    login = tmp_path / "docker"
    login.mkdir()
    (login / "config.json").write_text(json.dumps({"auths": {protected.host: {"auth": secret}}}))
    path = target.plan({"from": f"{protected.host}/team/app:1"}, **{protected.host: {"plain_http": True}})
    nobody = await target.migrate(path)
    done = await target.migrate(path, DOCKER_CONFIG=str(login))

    assert nobody.status == 4
    assert f"docker login {protected.host}" in nobody.err
    assert (done.status, done.references) == (0, f"mirror/team/app:1@{protected.index['digest']}\n"), done.err


async def test_a_list_on_standard_input(target: Target, protected: Protected) -> None:
    words = ("--src-plain-http", "--endpoint-url", target.emulator.endpoint_url, "--region", REGION, "--no-resume")
    lines = f"# what, where\n{protected.host}/team/app:1 copies/app:one\n{protected.host}/team/app:2 copies/app\n"
    environment = {"ASYNCPUSH_SRC_CREDS": f"{USER}:{PASSWORD}"}
    done = await target.migrate("-", "--create-repository", *words, stdin=lines.encode(), **environment)

    assert (done.status, done.references) == (1, f"copies/app:one@{protected.index['digest']}\n")
    errors = [line for line in done.err.splitlines() if "error:" in line]
    assert len(errors) == 1
    assert "copies/app:2: " in errors[0]
    assert "has no manifest team/app:2" in errors[0]
    assert PASSWORD not in done.err


async def test_ecr_of_another_account_and_region(tmp_path: Path, skopeo: str) -> None:
    accounts = [KnownCredentials("test", "test"), KnownCredentials("AKIAOTHER", "secret", account="111111111111")]
    (tmp_path / "credentials").write_text(
        "[default]\naws_access_key_id = test\naws_secret_access_key = test\n"
        "[other]\naws_access_key_id = AKIAOTHER\naws_secret_access_key = secret\n"
    )
    layout = Layout()
    index = index_in(layout)
    await to_thread.run_sync(layout.tag(index, "1").write, tmp_path / "layout")
    async with Emulator(tmp_path / "ecr", fsync=False, quirks=QUIRKS, credentials=accounts) as emulator:
        environment = {"AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "credentials"), "DOCKER_CONFIG": "/nowhere"}
        target = Target(emulator, tmp_path, environment)
        other = (
            "--create-repository",
            "--endpoint-url",
            emulator.endpoint_url,
            "--region",
            "us-west-2",
            "--profile",
            "other",
        )
        pushed = await to_thread.run_sync(
            lambda: run_cli("push", f"oci:{tmp_path}/layout:1", "from/app:1", *other, **environment)
        )
        assert pushed.status == 0, pushed.err
        host = emulator.endpoint_url.removeprefix("http://")
        login = {"endpoint_url": emulator.endpoint_url, "region": "us-west-2", "profile": "other"}
        path = target.plan({"from": f"{host}/from/app"}, **{host: {"plain_http": True, "credentials": {"ecr": login}}})
        done = await target.migrate(path)

        assert (done.status, done.references) == (0, f"mirror/from/app:1@{index['digest']}\n"), done.err
        assert await target.digest(skopeo, "mirror/from/app:1", tmp_path / "judged") == index["digest"]
        described = judge(emulator.endpoint_url).describe_repositories
        names = await to_thread.run_sync(lambda: [each["repositoryName"] for each in described()["repositories"]])
        assert names == ["mirror/from/app"]


async def test_layouts_and_archives_beside_a_registry(target: Target, skopeo: str, tmp_path: Path) -> None:
    layout = Layout()
    index, image = index_in(layout), layout.image(layer(7, 50_000))
    await to_thread.run_sync(layout.tag(index, "1").tag(image, "plain").write, tmp_path / "layout")
    (tmp_path / "layout.tar").write_bytes(layout.archive())
    saved = DockerSave().image(layer(8, 500_000), layer(9, 1_000), tags=["shop/cart:2.1", "shop/cart:edge"])
    (tmp_path / "saved.tar").write_bytes(saved.archive())
    path = target.plan(
        {"from": "oci:layout", "to": "from/layout"},
        {"from": "oci-archive:layout.tar:plain", "to": "from/archive:new"},
        {"from": "docker-archive:saved.tar", "to": "from/docker"},
    )
    done = await target.migrate(path)

    assert done.status == 0, done.err
    lines = dict(line.split("@") for line in done.references.splitlines())
    docker = lines.pop("mirror/from/docker:2.1")
    assert lines == {
        "mirror/from/layout:1": index["digest"],
        "mirror/from/layout:plain": image["digest"],
        "mirror/from/archive:new": image["digest"],
        "mirror/from/docker:edge": docker,
    }
    for number, (name, digest) in enumerate({**lines, "mirror/from/docker:2.1": docker}.items()):
        assert await target.digest(skopeo, name, tmp_path / f"judged-{number}") == digest


async def test_names_of_a_layout_that_are_not_tags_need_another_tag(target: Target) -> None:
    """Names of a layout that are not valid tags need another tag; the others are kept."""
    layout = Layout()
    plus = layout.image(layer(1))
    await to_thread.run_sync(layout.tag(plus, "1.0+b1").tag(layout.image(layer(2)), "ok").write, target.folder / "helm")
    path = target.plan({"from": "oci:helm", "to": "from/helm"}, {"from": "oci:helm:1.0+b1", "to": "from/one:1.0"})
    done = await target.migrate(path)

    assert done.status == 1
    assert {line.partition("@")[0] for line in done.references.splitlines()} == {
        "mirror/from/one:1.0",
        "mirror/from/helm:ok",
    }
    assert f"mirror/from/one:1.0@{plus['digest']}" in done.out
    assert "asyncpush: error: mirror/from/helm:1.0+b1: '1.0+b1' is not a tag; a tag has up to 128" in done.err
    verified = await run_beside("verify", path, **target.environment)
    assert verified.status == 1
    assert "mirror/from/helm:1.0+b1: '1.0+b1' is not a tag" in verified.err


async def test_what_an_archive_lacks_of_an_index_is_in_the_report_and_verified(target: Target) -> None:
    layout, _ = containerd_save(*PLATFORMS, platforms=(*PLATFORMS, "linux/s390x"))
    (target.folder / "part.tar").write_bytes(layout.archive())
    path = target.plan({"from": "oci-archive:part.tar", "to": "from/part", "platforms": "all"})
    done = await target.migrate(path, "--available-platforms", "--output", "json")

    assert done.status == 0, done.err
    [image] = json.loads(done.out)["images"]
    assert "linux/s390x" in [each["name"] for each in image["leftOut"]]
    assert "is pushed without linux/s390x" in done.err
    for words, status in (((), 2), (("--available-platforms",), 0)):
        verified = await run_beside("verify", path, *words, **target.environment)
        assert verified.status == status, verified.err


async def test_a_single_image_does_not_stand_for_all_platforms_of_a_plan(target: Target) -> None:
    """A single image is not taken for all platforms that a plan asks for."""
    layout = Layout()
    await to_thread.run_sync(layout.tag(layout.image(layer(1)), "1").write, target.folder / "one")
    done = await target.migrate(target.plan({"from": "oci:one", "to": "from/one", "platforms": [*PLATFORMS]}))

    assert done.status == 0, done.err
    assert "one:1 is for one platform, but the plan asks for linux/amd64 and linux/arm64" in done.err


async def test_real_images_go_from_one_registry_to_the_next(
    target: Target, protected: Protected, skopeo: str, real_images: Path, tmp_path: Path
) -> None:
    into = ("--dest-tls-verify=false", f"--dest-creds={USER}:{PASSWORD}", f"docker://{protected.host}/real/busybox:1")
    await anyio.run_process([skopeo, "copy", "-q", "--all", f"oci:{real_images}/busybox", *into])
    credentials = {"username": USER, "password": PASSWORD}
    path = target.plan(
        {"from": f"{protected.host}/real/busybox", "tags": {"glob": "*"}},
        {"from": f"docker-archive:{real_images}/busybox.docker.tar", "to": "real/archive:1"},
        **{protected.host: {"plain_http": True, "credentials": credentials}},
    )
    done = await target.migrate(path)

    assert done.status == 0, done.err
    for number, line in enumerate(done.references.splitlines()):
        name, _, digest = line.partition("@")
        assert await target.digest(skopeo, name, tmp_path / f"judged-{number}") == digest
    assert len(done.out.splitlines()) == 2
