"""Migrations: what arrives, what is sent for it, what goes on after an interruption, what does not stop the rest."""

from __future__ import annotations

import gzip
import json
import random
import re
from collections import Counter
from pathlib import Path

import anyio
import pytest
from aiohttp import web
from anyio import to_thread

from asyncpush.cli.migrate import failed_lines
from asyncpush.emulator import Emulator, FaultConfig
from asyncpush.emulator.faults import parse_fault
from asyncpush.errors import DigestMismatchError, JournalError, SourceNotFoundError, UsageError
from asyncpush.events import ImageFailed, LayerStarted, Listed, Notice, Retrying
from asyncpush.journal import SqliteJournal, open_journal
from asyncpush.migrate.plan.load import read_plan
from asyncpush.migrate.plan.model import overridden
from asyncpush.migrate.run import migrate_plan
from asyncpush.migrate.verify import verify_plan
from asyncpush.settings import AwsConfiguration, MiB, Settings, SourceRegistry
from asyncpush.verify import Verification
from support.aws import judge
from support.commands import run_beside
from support.events import Events
from support.images import DockerSave, Json, at, digest, json_digests
from support.migrations import Bench, layer, only, outcomes, reasons
from support.registry_server import QUICK
from support.relay import refused, relay_to

PLATFORMS = ("linux/amd64", "linux/arm64")


def unique_bytes(here: Bench) -> int:
    """The bytes of all blobs that the source has, manifests aside."""
    return sum(len(data) for name, data in here.layout.files.items() if _is_blob(name, data))


def _is_blob(name: str, data: bytes) -> bool:
    return name.startswith("blobs/") and b'"schemaVersion"' not in data[:200]


async def test_each_layer_goes_once_where_the_registry_mounts(here: Bench) -> None:
    """Every image arrives; each layer is sent once, where the registry mounts."""
    await here.mounting()
    base, tools = layer(1, 300_000), layer(2, 200_000)
    expected: dict[str, dict[str, str]] = {}
    for number in range(6):
        for tag in ("1", "2"):
            image = here.hold(f"team/app-{number}", tag, base, tools, layer(10 * number + int(tag) + 100))
            expected.setdefault(f"mirror/app-{number}", {})[tag] = str(image["digest"])
    images = [{"from": f"team/app-{number}", "to": f"mirror/app-{number}"} for number in range(6)]
    report = await here.run(here.plan(*images))

    assert Counter(outcomes(report).values()) == {"pushed": 12}
    assert {name: await here.stored(name) for name in expected} == expected
    assert sum(result.bytes_sent for result in report.results) == unique_bytes(here)
    counts = here.emulator.requests.counts()
    assert counts["CompleteLayerUpload"] == len(
        {name for name, data in here.layout.files.items() if _is_blob(name, data)}
    )
    assert report.requests["MountBlob"] == 5 * 2
    assert len(here.source.asked("GET", "/blobs/")) == counts["CompleteLayerUpload"]


async def test_an_index_of_many_tags_puts_its_children_once_and_later_tags_alone(here: Bench) -> None:
    index = here.layout.index(*two_platforms(here))
    for tag in ("1.2", "latest"):
        here.source.hold(here.layout, index, "team/app", tag)
    await here.run(here.plan({"from": "team/app", "to": "mirror/app"}), journal=False)
    assert here.emulator.requests.counts()["PutImage"] == 2 + 3

    here.source.hold(here.layout, index, "team/app", "new")
    here.emulator.requests.clear()
    # Of a tag alone, nothing that is there shows under the tags that are asked for.
    report = await here.run(
        here.plan({"from": "team/app", "to": "mirror/app", "tags": {"names": ["new"]}}), journal=False
    )

    assert outcomes(report)["mirror/app:new"] == "pushed"
    assert here.emulator.requests.counts()["PutImage"] == 1
    assert len(set((await here.stored("mirror/app")).values())) == 1


async def test_without_mounts_each_repository_gets_its_own(here: Bench) -> None:
    for number in range(3):
        here.hold(f"team/app-{number}", "1", layer(1), layer(number + 5))
    report = await here.run(here.plan(*({"from": f"team/app-{number}"} for number in range(3))))

    assert Counter(outcomes(report).values()) == {"pushed": 3}
    assert report.requests["MountBlob"] == 0
    assert here.emulator.requests.counts()["CompleteLayerUpload"] == 3 * 3


async def test_a_registry_that_declines_every_mount_is_asked_few_times(here: Bench) -> None:
    client = judge(here.emulator.endpoint_url)
    for number in range(8):
        here.hold(f"team/app-{number}", "1", layer(1), layer(number + 5))
        # Repositories of another encryption do not give their layers.
        kind = {"encryptionType": "KMS"} if number % 2 else {"encryptionType": "AES256"}
        await to_thread.run_sync(
            lambda name=f"team/app-{number}", kind=kind: client.create_repository(
                repositoryName=name, encryptionConfiguration=kind
            )
        )
    await here.mounting()
    report = await here.run(here.plan(*({"from": f"team/app-{number}"} for number in range(8))))

    assert Counter(outcomes(report).values()) == {"pushed": 8}


async def test_a_second_run_asks_once_a_tag_and_once_a_repository(here: Bench) -> None:
    for number in range(4):
        for tag in ("1", "2", "3"):
            here.hold(f"team/app-{number}", tag, layer(number), layer(int(tag) + 50))
    path = here.plan(*({"from": f"team/app-{number}", "tags": ["1", "2", "3"]} for number in range(4)))
    await here.run(path)
    here.source.seen.clear()
    report = await here.run(path)

    assert Counter(outcomes(report).values()) == {"present": 12}
    assert Counter(seen.method for seen in here.source.seen) == {"HEAD": 12}
    assert report.requests["BatchGetImage"] == 4
    assert sum(report.requests.values()) <= 1.5 * 12
    assert set(report.requests) <= {
        "HEAD manifest", "BatchGetImage", "DescribeRepositories",
    }  # fmt: skip


async def test_a_tag_that_has_moved_at_the_source_moves(here: Bench) -> None:
    here.hold("team/app", "1", layer(1))
    path = here.plan({"from": "team/app", "tags": ["1"]})
    await here.run(path)
    moved = here.hold("team/app", "1", layer(2))
    report = await here.run(path)

    assert outcomes(report) == {"team/app:1": "pushed"}
    assert await here.stored("team/app") == {"1": moved["digest"]}


async def test_bad_images_fail_and_the_others_go_on(here: Bench) -> None:
    good = here.hold("team/app", "good", layer(1), layer(2))
    wrong = here.hold("team/app", "wrong", layer(1), layer(3))
    here.hold("team/app", "gone", layer(4))
    here.hold("team/app", "huge", layer(5))
    blob = json.loads(here.source.blobs[str(wrong["digest"])])["layers"][1]["digest"]
    here.source.blobs[blob] = bytes(len(here.source.blobs[blob]))
    here.source.rule("GET", "/manifests/gone")(lambda _: _refused(404))
    here.source.rule("GET", "/manifests/huge")(lambda _: _five_megabytes())
    tags = ["good", "wrong", "gone", "huge", "missing"]
    report = await here.run(here.plan({"from": "team/app", "tags": tags}), retries=1)

    assert outcomes(report) == {f"team/app:{tag}": "pushed" if tag == "good" else "failed" for tag in tags}
    assert await here.stored("team/app") == {"good": good["digest"]}
    assert isinstance(only(report, "team/app:wrong").error, DigestMismatchError)
    assert isinstance(only(report, "team/app:gone").error, SourceNotFoundError)
    assert isinstance(only(report, "team/app:missing").error, SourceNotFoundError)
    assert "4194304" in str(only(report, "team/app:huge").error)
    available = judge(here.emulator.endpoint_url).batch_check_layer_availability
    answer = await to_thread.run_sync(lambda: available(repositoryName="team/app", layerDigests=[blob]))
    assert answer["layers"][0]["layerAvailability"] == "UNAVAILABLE"


async def _refused(status: int) -> object:
    from support.registry_server import refusal

    return refusal(status, "MANIFEST_UNKNOWN", "deleted meanwhile")


async def _five_megabytes() -> object:
    from support.registry_server import manifest

    return manifest("application/vnd.oci.image.manifest.v1+json", b'{"schemaVersion": 2}' + b" " * 5_000_000)


async def test_what_fails_for_a_while_is_tried_again_at_the_end(here: Bench) -> None:
    image = here.hold("team/app", "1", layer(1))
    here.hold("team/app", "2", layer(2))
    blob = json.loads(here.source.blobs[str(image["digest"])])["layers"][0]["digest"]
    data = here.source.blobs[blob]

    @here.source.rule("GET", blob, times=1)
    async def _(request: object) -> object:

        return web.Response(body=bytes(len(data)))

    report = await here.run(here.plan({"from": "team/app", "tags": ["1", "2"]}))

    assert outcomes(report) == {"team/app:1": "pushed", "team/app:2": "pushed"}
    assert (only(report, "team/app:1").attempts, only(report, "team/app:2").attempts) == (2, 1)


async def test_an_unreadable_base_is_tried_once_a_round_without_an_upload(here: Bench) -> None:
    """An unreadable base layer is tried once a round, and leaves no upload behind."""
    base = layer(1)
    for repository in ("one", "two"):
        for tag in ("1", "2", "3"):
            here.hold(f"team/{repository}", tag, base, layer(2))
    name = digest(gzip.compress(base, 1, mtime=0))
    here.source.blobs[name] = bytes(len(here.source.blobs[name]))
    plan = here.plan({"from": "team/one", "to": "one"}, {"from": "team/two", "to": "two"})

    report = await here.run(plan, retries=1)

    assert {result.outcome for result in report.results} == {"failed"}
    assert all("is damaged" in reason for reason in reasons(report))
    # Each of the two repositories is a source of its own.
    assert len(here.source.asked("GET", name)) == 2 * 2
    async with open_journal(here.folder / "plan.journal") as journal:
        assert not [left for left in await journal.left_uploads() if left.identity == name]


async def test_fail_fast_stops_at_the_first_failure_and_can_be_resumed(here: Bench) -> None:
    """With fail-fast, a run stops at the first failure, and the next run does the rest."""
    for number in range(3):
        here.hold("team/app", str(number), layer(number))
    path = here.plan({"from": "team/app", "tags": ["missing", "0", "1", "2"]})
    report = await here.run(path, fail_fast=True)

    assert [result.outcome for result in report.results if result.outcome == "failed"] == ["failed"]
    after = await here.run(path)
    assert Counter(outcomes(after).values())["failed"] == 1
    assert len(await here.stored("team/app")) == 3


async def test_two_images_for_one_place_are_refused_and_nothing_is_guessed(here: Bench) -> None:
    here.hold("team/app", "1", layer(1))
    here.hold("other/app", "1", layer(2))
    report = await here.run(
        here.plan({"from": "team/app", "to": "mirror/app"}, {"from": "other/app", "to": "mirror/app"})
    )

    assert sorted(result.outcome for result in report.results) == ["failed", "pushed"]
    [failure] = report.failed
    assert isinstance(failure.error, UsageError)
    assert "images[" in str(failure.error)


async def test_a_repository_that_may_not_be_created_fails_its_images_only(here: Bench) -> None:
    here.hold("team/app", "1", layer(1))
    here.hold("team/other", "1", layer(2))
    report = await here.run(here.plan({"from": "team/app"}, {"from": "team/other", "repository": {"create": False}}))

    assert outcomes(report) == {"team/app:1": "pushed", "team/other:1": "failed"}
    assert "create: true" in reasons(report)[0]


async def test_a_creation_template_creates_what_it_is_for(here: Bench) -> None:
    client = judge(here.emulator.endpoint_url)

    def template() -> None:
        client.create_repository_creation_template(
            prefix="mirror", appliedFor=["CREATE_ON_PUSH"], imageTagMutability="IMMUTABLE"
        )

    await to_thread.run_sync(template)
    here.hold("team/app", "1", layer(1))
    report = await here.run(here.plan({"from": "team/app", "to": "mirror/app", "repository": {"create": False}}))

    assert outcomes(report) == {"mirror/app:1": "pushed"}
    described = await to_thread.run_sync(lambda: client.describe_repositories(repositoryNames=["mirror/app"]))
    assert described["repositories"][0]["imageTagMutability"] == "IMMUTABLE"


async def test_a_taken_immutable_tag_fails_before_anything_is_sent(here: Bench) -> None:
    """An immutable tag that names another image fails before any byte is sent."""
    here.hold("team/app", "1", layer(1))
    path = here.plan({"from": "team/app", "tags": ["1"], "repository": {"create": True, "mutability": "IMMUTABLE"}})
    await here.run(path)
    here.hold("team/app", "1", layer(2))
    before = here.emulator.requests.counts()["InitiateLayerUpload"]
    report = await here.run(path)

    assert outcomes(report) == {"team/app:1": "failed"}
    assert here.emulator.requests.counts()["InitiateLayerUpload"] == before


async def test_moved_tags_ask_once_for_the_mutability_of_their_repository(here: Bench) -> None:
    """Tags that have moved ask once for the mutability of their repository."""
    for tag in ("1", "2", "3"):
        here.hold("team/app", tag, layer(int(tag)))
    plan = here.plan({"from": "team/app", "to": "mirror/app"})
    await here.run(plan)
    for tag in ("1", "2", "3"):
        here.hold("team/app", tag, layer(10 + int(tag)))
    here.emulator.requests.clear()

    report = await here.run(plan)

    assert Counter(outcomes(report).values()) == {"pushed": 3}
    # One lists the plan's repositories.
    assert here.emulator.requests.counts()["DescribeRepositories"] == 1 + 1


async def test_referrers_and_cosigns_tags_come_along_once(here: Bench) -> None:
    image = here.hold("team/app", "1", layer(1))
    subject = {"mediaType": image["mediaType"], "digest": image["digest"], "size": image["size"]}
    config = here.layout.blob(b"{}", "application/vnd.oci.empty.v1+json")
    document = {"config": config, "layers": [here.layout.blob(b"an sbom", "text/spdx")], "subject": subject}
    sbom = here.layout.document(str(image["mediaType"]), document)
    here.source.hold(here.layout, sbom, "team/app", "unused")
    signature = here.layout.manifest(
        config, [here.layout.blob(b"signed", "application/vnd.dev.cosign.simplesigning.v1+json")]
    )
    cosign = f"sha256-{str(image['digest'])[7:]}.sig"
    here.source.hold(here.layout, signature, "team/app", cosign)
    here.source.referrers = {str(image["digest"]): [sbom]}
    path = here.plan({"from": "team/app", "tags": ["1"]})
    report = await here.run(path)

    subjects = {result.copy.destination: str(result.subject) for result in report.results if result.subject}
    assert subjects == {f"team/app:{cosign}": image["digest"], f"team/app@{sbom['digest']}": image["digest"]}
    assert await here.stored("team/app") == {"1": image["digest"], cosign: signature["digest"]}
    client = judge(here.emulator.endpoint_url)
    details = await to_thread.run_sync(lambda: client.describe_images(repositoryName="team/app")["imageDetails"])
    assert sbom["digest"] in {each["imageDigest"] for each in details}

    here.source.seen.clear()
    await here.run(path)
    assert not here.source.asked("GET", "/referrers/")
    await here.run(path, recheck=True)
    assert here.source.asked("GET", "/referrers/")


async def test_referrers_stay_behind_where_the_plan_says_so(here: Bench) -> None:
    image = here.hold("team/app", "1", layer(1))
    here.source.referrers = {}
    await here.run(here.plan({"from": "team/app", "tags": ["1"], "referrers": False}))

    assert not here.source.asked("GET", "/referrers/")
    assert not here.source.asked("GET", "/tags/")
    assert await here.stored("team/app") == {"1": image["digest"]}


async def test_several_targets_get_an_image_from_one_reading(here: Bench, tmp_path: Path) -> None:
    image = here.hold("team/app", "1", layer(1), layer(2), layer(3))
    async with Emulator(tmp_path / "second", fsync=False) as second:
        targets = {
            "one": {"region": "eu-west-1", "endpoint_url": here.emulator.endpoint_url},
            "two": {"region": "us-east-1", "endpoint_url": here.emulator.endpoint_url, "prefix": "copies"},
            "three": {"region": "eu-west-1", "endpoint_url": second.endpoint_url},
        }
        defaults = {"targets": list(targets), "repository": {"create": True}}
        report = await here.run(here.plan({"from": "team/app"}, targets=targets, defaults=defaults))

        assert Counter(outcomes(report).values()) == {"pushed": 3}
        assert len(here.source.asked("GET", "/blobs/")) == 4
        assert len(here.source.asked("GET", "/manifests/1")) == 1
        there = judge(second.endpoint_url).describe_images
        details = await to_thread.run_sync(lambda: there(repositoryName="team/app")["imageDetails"])
        assert details[0]["imageDigest"] == image["digest"]


async def test_platforms_are_chosen_and_a_later_run_knows_what_became_of_them(here: Bench) -> None:
    children = [
        at(here.layout.image(layer(number), platform=platform), platform)
        for number, platform in enumerate(("linux/amd64", "linux/arm64", "windows/amd64"))
    ]
    index = here.layout.index(*children)
    here.source.hold(here.layout, index, "team/app", "1")
    path = here.plan({"from": "team/app", "tags": ["1"], "platforms": ["linux/amd64", "linux/arm64"]})
    report = await here.run(path)
    here.source.seen.clear()
    again = await here.run(path)

    assert outcomes(report) == {"team/app:1": "pushed"}
    assert outcomes(again) == {"team/app:1": "present"}
    assert not here.source.asked("GET", "/manifests/")
    client = judge(here.emulator.endpoint_url)
    answer = await to_thread.run_sync(
        lambda: client.batch_get_image(repositoryName="team/app", imageIds=[{"imageTag": "1"}])
    )
    document = json.loads(answer["images"][0]["imageManifest"])
    assert [child["platform"]["architecture"] for child in document["manifests"]] == ["amd64", "arm64"]
    assert [child["digest"] for child in document["manifests"]] == [child["digest"] for child in children[:2]]


async def test_several_platforms_of_an_archive_are_one_smaller_index(here: Bench, tmp_path: Path) -> None:
    layout = here.layout
    images = {each: layout.image(layer(at), platform=each) for at, each in enumerate((*PLATFORMS, "linux/s390x"))}
    layout.tag(layout.index(*(at(image, name) for name, image in images.items())), "1")
    (tmp_path / "app.tar").write_bytes(layout.archive())
    path = archive_plan(here, tmp_path / "app.tar", "team/app", kind="oci-archive")
    document = json.loads(path.read_text())
    document["images"][0]["platforms"] = [*PLATFORMS, "windows/amd64"]
    path.write_text(json.dumps(document))
    told: list[str] = []
    await here.run(path, emit=lambda event: told.append(str(event)))

    client = judge(here.emulator.endpoint_url)
    [stored] = await to_thread.run_sync(
        lambda: client.batch_get_image(repositoryName="team/app", imageIds=[{"imageTag": "1"}])["images"]
    )
    index = json.loads(stored["imageManifest"])
    assert [each["digest"] for each in index["manifests"]] == [images[name]["digest"] for name in PLATFORMS]
    assert any("no image for windows/amd64" in event for event in told)


async def test_an_archive_of_uncompressed_layers_is_not_compressed_twice(here: Bench, tmp_path: Path) -> None:
    archive = tmp_path / "app.tar"
    archive.write_bytes(DockerSave().image(layer(1, 2_000_000), layer(2), tags=["app:1", "app:2"]).archive())
    path = here.plan()
    document = json.loads(path.read_text())
    document["images"] = [{"from": f"docker-archive:{archive}", "to": "team/app"}]
    path.write_text(json.dumps(document))
    report = await here.run(path)
    assert Counter(outcomes(report).values()) == {"pushed": 2}

    # Under a new tag of the same archive nothing is compressed or sent again.
    document["images"].append({"from": f"docker-archive:{archive}:app:1", "to": "team/app:new"})
    path.write_text(json.dumps(document))
    again = await here.run(path)
    assert only(again, "team/app:new").bytes_sent == 0
    assert here.emulator.requests.counts()["CompleteLayerUpload"] == 3


async def test_an_entry_that_takes_no_tag_is_told_and_fails_where_it_must(here: Bench) -> None:
    for tag in ("1.0", "1.1"):
        here.hold("team/app", tag, layer(1))
    here.hold("team/two", "1", layer(2))
    (here.folder / "some.tar").write_bytes(DockerSave().image(layer(3), tags=["app:1"]).archive())
    path = here.plan(
        {"from": "team/app", "to": "m/app", "tags": {"glob": "v*"}},
        {"from": "team/app", "to": "m/newest", "tags": {"exclude": {"glob": "1.*"}, "newest": 1}},
        {"from": "team/two", "to": "m/two"},
    )
    document = json.loads(path.read_text())
    document["images"].append({"from": "docker-archive:some.tar", "to": "m/some", "tags": {"semver": ">=2"}})
    path.write_text(json.dumps(document))
    app = f"{here.source.host}/team/app"
    notes = {
        f"images[0]: {app} has 2 tags, of which the plan takes none (glob: v*)",
        f"images[1]: {app} has 2 tags, of which the plan takes none (exclude glob: 1.*; newest: 1)",
        "images[3]: docker-archive:some.tar has 1 image, of which the plan takes none (semver: >=2)",
    }

    for options in ({"dry": True}, {}):
        report = await here.run(path, **options)
        assert {str(each) for each in report.nothing_taken} == notes
        assert report.failed == ()
    assert [result.destination for result in await verify_plan(await read_plan(path))] == ["m/two:1"]

    # What must take some fails, and nothing of it goes; the others go on.
    document["defaults"]["min_tags"] = 2
    document["images"][2]["min_tags"] = 0
    document["images"][3]["min_tags"] = 1
    document["images"] += [
        {"from": app, "to": "m/enough", "tags": {"glob": "*"}},
        {"from": app, "to": "m/few", "tags": {"regex": "1.0"}},
    ]
    path.write_text(json.dumps(document))
    report = await here.run(path)
    assert {result.copy.entry.place for result in report.failed} == {"images[0]", "images[1]", "images[3]", "images[5]"}
    assert any("takes 1 (regex: 1.0); it must be 2 or more" in each for each in reasons(report))
    assert all("it must be " in reason for reason in reasons(report))
    assert {name for name, outcome in outcomes(report).items() if outcome != "failed"} == {
        "m/two:1",
        "m/enough:1.0",
        "m/enough:1.1",
    }
    assert report.nothing_taken == ()


async def test_the_command_names_entries_without_tags_and_is_strict_on_request(here: Bench) -> None:
    here.hold("team/app", "1.0", layer(1))
    path = here.plan({"from": "team/app", "tags": {"glob": "v*"}})
    words = ("migrate", path, "--progress", "none", "--output", "json", "--metrics-out", here.folder / "metrics.prom")
    note = f"images[0]: {here.source.host}/team/app has 1 tag, of which the plan takes none (glob: v*)"

    for more in ((), ("--dry-run",)):
        ran = await run_beside(*words, *more)
        assert ran.status == 0, ran.err
        assert f"asyncpush: note: {note}\n" in ran.err
        [untaken] = json.loads(ran.out)["nothingTaken"]
        expected = {"entry": "images[0]", "source": f"{here.source.host}/team/app", "rules": "glob: v*", "tags": 1}
        assert untaken == expected
        assert "asyncpush_migration_entries_without_tags 1\n" in (here.folder / "metrics.prom").read_text()
    ran = await run_beside(*words, "--strict")
    assert ran.status == 1
    assert f"{note}; it must be 1 or more (min_tags or --strict); see the plan's `tags`" in ran.err
    [failed] = json.loads(ran.out)["images"]
    assert (failed["entry"], failed["outcome"]) == ("images[0]", "failed")
    verified = await run_beside("verify", path, "--progress", "plain")
    assert verified.status == 0
    assert note in verified.err


async def test_a_dry_run_says_what_would_happen_and_changes_nothing(here: Bench) -> None:
    await here.mounting()
    for number in range(2):
        here.hold(f"team/app-{number}", "1.0", layer(1, 50_000), layer(number + 5))
        here.hold(f"team/app-{number}", "0.9", layer(1, 50_000), layer(number + 9))
    path = here.plan(*({"from": f"team/app-{number}", "tags": {"glob": "1.*"}} for number in range(2)))
    before = here.emulator.requests.counts()
    report = await here.run(path, journal=False, dry=True)

    assert Counter(outcomes(report).values()) == {"planned": 2}
    assert {(each.tag, each.reason) for each in report.left_out} == {("0.9", "matches no glob")}
    shared = len(next(data for data in here.layout.files.values() if 45_000 < len(data) < 60_000))
    assert sum(result.bytes_mounted for result in report.results) == shared
    changes = set(here.emulator.requests.counts() - before)
    assert not changes & {"CreateRepository", "InitiateLayerUpload", "PutImage", "UploadLayerPart"}

    real = await here.run(path)
    assert sum(result.bytes_sent for result in real.results) == sum(result.bytes_sent for result in report.results)


#: Metrics of a request that was throttled once.
RETRIED = ("retries", "throttled_requests")


async def test_the_commands_output(here: Bench) -> None:
    await here.mounting()
    good = here.hold("team/app", "1", layer(1))
    here.hold("team/app", "2", layer(2))
    here.emulator.fault_config = FaultConfig(faults=(parse_fault("UploadLayerPart:nth=1:throttle"),))
    path = here.plan({"from": "team/app", "tags": ["1", "3"]})
    failed, metrics = here.folder / "failed.txt", here.folder / "metrics.prom"
    words = ("migrate", path, "--progress", "none", "--failed-out", failed, "--metrics-out", metrics)
    done = await run_beside(*words)

    assert done.status == 1
    assert done.references == f"team/app:1@{good['digest']}\n"
    assert "team/app:3: " in done.err
    assert re.search(r"\nasyncpush: 2 images: .*, 1 retry \(1 throttled\)\n$", done.err)
    assert failed.read_text() == f"docker://{here.source.host}/team/app:3 team/app:3\n"
    for name in ('images{outcome="failed"}', *(f'{kind}{{operation="UploadLayerPart"}}' for kind in RETRIED)):
        assert f"asyncpush_migration_{name} 1\n" in metrics.read_text()
    shown = await run_beside("journal", "show", "--runs", here.folder / "plan.journal", "--output", "json")
    [run] = json.loads(shown.out)["runs"]
    assert run["retries"] == run["throttled"] == {"UploadLayerPart": 1}

    here.hold("team/app", "3", layer(3))
    options = ("--src-plain-http", "--endpoint-url", here.emulator.endpoint_url, "--region", "eu-west-1")
    again = await run_beside("migrate", failed, "--no-resume", "--output", "json", *options)
    document = json.loads(again.out)
    assert again.status == 0
    assert [(image["destination"], image["outcome"]) for image in document["images"]] == [("team/app:3", "pushed")]
    assert document["totals"]["requests"]["PutImage"] == 1


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (("missing.yaml",), 2, "missing.yaml"),
        (("plan.json", "--max-layers", "0"), 2, "--max-layers"),
        (("plan.json", "--journal", "/dev/null/x"), 2, "/dev/null/x"),
    ],
)
async def test_wrong_usage_says_so_before_anything_is_asked(
    here: Bench, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], status: int, says: str
) -> None:
    here.hold("team/app", "1", layer(1))
    here.plan({"from": "team/app"})
    monkeypatch.chdir(here.folder)
    done = await run_beside("migrate", *words)

    assert done.status == status
    assert says in done.err
    assert done.err.count("\n") == 1
    assert not here.source.seen


async def test_a_target_that_can_not_be_reached_is_one_line(here: Bench) -> None:
    here.hold("team/app", "1", layer(1))
    targets = {"here": {"region": "eu-west-1", "endpoint_url": "http://127.0.0.1:1"}}
    path = here.plan({"from": "team/app"}, targets=targets)
    done = await run_beside("migrate", path, "--progress", "none")

    assert done.status == 1
    assert done.err.count("\n") == 1
    assert "127.0.0.1:1" in done.err


async def test_a_plan_is_verified_against_its_sources(here: Bench) -> None:
    image = here.hold("team/app", "1", layer(1), layer(2))
    here.hold("team/app", "2", layer(3))
    config = here.layout.blob(b"{}", "application/vnd.oci.empty.v1+json")
    subject = {name: image[name] for name in ("mediaType", "digest", "size")}
    sbom = here.layout.document(
        str(image["mediaType"]), {"config": config, "layers": [here.layout.blob(b"sbom", "x/y")], "subject": subject}
    )
    here.source.hold(here.layout, sbom, "team/app", "unused")
    here.source.referrers = {str(image["digest"]): [sbom]}
    path = here.plan({"from": "team/app", "tags": ["1", "2"]})
    verify = ("verify", "--deep", path, "--progress", "none")
    before = await run_beside(*verify)
    assert before.status == 1
    assert "team/app" in before.err

    await here.run(path)
    whole = await run_beside(*verify)
    assert whole.status == 0, whole.err
    assert len(whole.out.splitlines()) == 3
    assert f"team/app:1@{image['digest']}  whole" in whole.out
    assert str(sbom["digest"]) in whole.out

    moved = here.hold("team/app", "2", layer(4))
    after = await run_beside(*verify)
    assert after.status == 1
    assert str(moved["digest"]) in after.err


async def test_an_archive_is_verified_by_its_config_and_layer_types(here: Bench, tmp_path: Path) -> None:
    archive = tmp_path / "app.tar"
    archive.write_bytes(DockerSave().image(layer(1), tags=["app:1"]).archive())
    path = here.plan()
    document = json.loads(path.read_text())
    document["images"] = [{"from": "docker-archive:app.tar", "to": "app"}]
    path.write_text(json.dumps(document))
    await here.run(path)
    plan = await read_plan(path)

    [whole] = await verify_plan(plan, deep=True)
    assert isinstance(whole, Verification)
    assert whole.is_whole
    [other] = await verify_plan(plan, deep=True, settings=Settings(compression="zstd"))
    assert isinstance(other, Verification)
    assert "tar.gzip and not application/vnd.oci.image.layer.v1.tar+zstd" in str(other.problems[0])
    archive.write_bytes(DockerSave().image(layer(2), tags=["app:1"]).archive())
    [stale] = await verify_plan(plan, deep=True)
    assert isinstance(stale, Verification)
    assert "with the config sha256:" in str(stale.problems[0])


async def test_of_two_images_for_one_place_the_plans_first_has_it(here: Bench) -> None:
    here.hold("prime/app", "1", layer(3))  # who asks a registry first is waited for
    first = here.hold("slow/app", "1", layer(1))
    here.hold("quick/app", "1", layer(2))
    answered = anyio.Event()

    @here.source.rule("GET", "/v2/quick/app/tags/list")
    async def _(_: object) -> None:
        answered.set()

    @here.source.rule("GET", "/v2/slow/app/tags/list")
    async def _(_: object) -> None:
        await answered.wait()

    images = (
        {"from": "prime/app"},
        {"from": "slow/app", "to": "mirror/app"},
        {"from": "quick/app", "to": "mirror/app"},
    )
    report = await here.run(here.plan(*images))

    assert await here.stored("mirror/app") == {"1": first["digest"]}
    [failure] = report.failed
    assert failure.copy.source.endswith("quick/app:1")


async def test_a_failure_that_is_retried_is_a_note(here: Bench) -> None:
    """A failure that will be retried is one note, however often it comes again; a final one is a failure."""
    here.hold("team/app", "1", layer(1))
    path = here.plan({"from": "team/app", "tags": ["1", "missing"]})

    asked: list[str] = []

    @here.source.rule("GET", "/blobs/")
    async def _(request: web.Request) -> web.StreamResponse | None:
        asked.append(request.path)
        is_damaged = request.path == asked[0] and asked.count(request.path) <= 2
        return web.Response(body=b"something else") if is_damaged else None

    events = Events()
    report = await here.run(path, emit=events)

    assert outcomes(report) == {"team/app:1": "pushed", "team/app:missing": "failed"}
    assert [result.attempts for result in report.results if result.outcome == "pushed"] == [3]
    assert [event.destination for event in events.of(ImageFailed)] == ["team/app:missing"]
    [note] = [event.text for event in events.of(Notice) if "tried again" in event.text]
    assert note.startswith("team/app:1 will be tried again at the end: ")


@pytest.mark.parametrize("create", [True, False])
async def test_who_may_push_but_not_describe_still_migrates(here: Bench, create: bool) -> None:
    here.hold("team/app", "1", layer(1))
    here.hold("team/missing", "1", layer(2))
    client = judge(here.emulator.endpoint_url)
    await to_thread.run_sync(lambda: client.create_repository(repositoryName="team/app"))
    async with relay_to(here.emulator.endpoint_url) as relay:
        denied = refused("AccessDeniedException", "not authorized to perform: ecr:DescribeRepositories")
        relay.plan("DescribeRepositories", *[denied] * 20)
        targets = {"here": {"region": "eu-west-1", "endpoint_url": relay.url}}
        path = here.plan(
            {"from": "team/app", "tags": ["1"]},
            {"from": "team/missing", "tags": ["1"], "repository": {"create": create}},
            targets=targets,
        )
        events = Events()
        report = await here.run(path, emit=events)

    assert outcomes(report) == {"team/app:1": "pushed", "team/missing:1": "pushed" if create else "failed"}
    assert any("can't be described" in event.text for event in events.of(Notice))


async def test_a_journal_that_can_not_be_written_any_more_ends_the_run(here: Bench) -> None:
    for number in range(30):
        here.hold("team/app", str(number), layer(number))
    plan = await read_plan(here.plan({"from": "team/app"}))
    async with open_journal(here.folder / "plan.journal") as kept:

        class Full:
            """A journal on a disk that is full from some moment on."""

            left = 20

            def __getattr__(self, name: str) -> object:
                return getattr(kept, name)

            async def layer_completed(self, *about: object) -> None:
                self.left -= 1
                if self.left < 0:
                    raise JournalError("the journal can't be written: no space left on device")
                await kept.layer_completed(*about)

        with pytest.raises(JournalError, match="no space left"):
            await migrate_plan(plan, journal=Full())

    report = await here.run(here.folder / "plan.json")
    assert set(outcomes(report).values()) <= {"finished", "present", "pushed"}
    assert len(await here.stored("team/app")) == 30


async def test_the_command_lines_platform_counts_where_the_plan_names_none(here: Bench) -> None:
    children = [
        at(here.layout.image(layer(number), platform=platform), platform)
        for number, platform in enumerate(("linux/amd64", "linux/arm64"))
    ]
    here.source.hold(here.layout, here.layout.index(*children), "team/app", "1")
    path = here.plan(
        {"from": "team/app", "tags": ["1"], "to": "mirror/one"},
        {"from": "team/app", "tags": ["1"], "to": "mirror/other", "platforms": ["linux/amd64"]},
    )
    done = await run_beside("migrate", path, "--platform", "linux/arm64")

    assert done.status == 0, done.err
    assert await here.stored("mirror/one") == {"1": children[1]["digest"]}
    assert await here.stored("mirror/other") == {"1": children[0]["digest"]}


async def test_entries_of_an_unlistable_repository_are_all_tried_again(here: Bench) -> None:
    """Entries of one repository that can't be listed for a while are all tried again."""
    here.hold("team/app", "a1", layer(1))
    here.hold("team/app", "b1", layer(2))
    left = [1, 2]

    async def listing(request: web.Request) -> web.Response | None:
        return web.Response(status=400) if "/tags/" in request.path and left and left.pop() else None

    here.source.rules.append(listing)
    images = [{"from": "team/app", "tags": {"glob": f"{letter}*"}, "referrers": False} for letter in "ab"]
    report = await here.run(here.plan(*images))

    assert outcomes(report) == {"team/app:a1": "pushed", "team/app:b1": "pushed"}


async def test_other_platforms_of_the_same_index_are_another_image(here: Bench) -> None:
    children = two_platforms(here)
    await here.run(here.plan({"from": "team/app", "tags": ["1"], "platforms": ["linux/amd64"]}))
    assert await here.stored("team/app") == {"1": children[0]["digest"]}
    await here.run(here.plan({"from": "team/app", "tags": ["1"], "platforms": ["linux/arm64"]}))
    assert await here.stored("team/app") == {"1": children[1]["digest"]}


async def test_of_two_choices_of_platforms_for_one_place_one_fails(here: Bench) -> None:
    children = two_platforms(here)
    images = [{"from": "team/app", "tags": {"glob": "*"}, "platforms": [child]} for child in PLATFORMS]
    report = await here.run(here.plan(*images))

    assert sorted(result.outcome for result in report.results) == ["failed", "pushed"]
    assert await here.stored("team/app") == {"1": children[0]["digest"]}
    assert all(line.startswith("# ") for line in failed_lines(report))


@pytest.mark.parametrize("tags", [(["a:1"], ["b:1"]), (None, None)])
async def test_two_images_of_an_archive_for_one_tag_are_refused(
    here: Bench, tmp_path: Path, tags: tuple[list[str] | None, ...]
) -> None:
    save, archive = DockerSave(), tmp_path / "app.tar"
    for number, names in enumerate(tags):
        save.image(layer(number), tags=names)
    archive.write_bytes(save.archive())
    report = await here.run(archive_plan(here, archive, "team/app"))

    assert [result.outcome for result in report.results] == ["failed"]
    assert "two images of" in reasons(report)[0]


async def test_referrers_come_again_into_a_repository_that_was_deleted_meanwhile(here: Bench) -> None:
    image = here.hold("team/app", "1", layer(1))
    here.hold("team/app", f"sha256-{image['digest'][7:]}.sig", layer(9))
    path = here.plan({"from": "team/app", "tags": ["1"]})
    await here.run(path)
    before = await here.stored("team/app")
    client = judge(here.emulator.endpoint_url)
    await to_thread.run_sync(lambda: client.delete_repository(repositoryName="team/app", force=True))
    await here.run(path)

    assert len(before) == 2
    assert await here.stored("team/app") == before


async def test_a_dry_run_sees_referrers_that_are_there(here: Bench) -> None:
    image = here.hold("team/app", "1", layer(1))
    here.hold("team/app", f"sha256-{image['digest'][7:]}.sig", layer(9))
    path = here.plan({"from": "team/app", "tags": ["1"]})
    planned = await here.run(path, journal=False, dry=True)
    await here.run(path, journal=False)
    again = await here.run(path, journal=False, dry=True)

    assert Counter(outcomes(planned).values()) == {"planned": 2}
    assert Counter(outcomes(again).values()) == {"present": 2}


async def test_a_dry_run_mounts_nothing_that_is_yet_to_be_compressed(here: Bench, tmp_path: Path) -> None:
    await here.mounting()
    archive = tmp_path / "app.tar"
    archive.write_bytes(DockerSave().image(layer(1, 500_000), tags=["app:1"]).archive())
    path = archive_plan(here, archive, "team/one", "team/two")
    planned = await here.run(path, journal=False, dry=True)
    done = await here.run(path, journal=False)

    mounted = [sum(result.layers_mounted for result in report.results) for report in (planned, done)]
    assert mounted == [1, 1]


async def test_layers_for_several_targets_never_wait_for_memory_that_others_hold(here: Bench, tmp_path: Path) -> None:
    for number in range(8):
        here.hold("team/app", str(number), random.Random(number).randbytes(6 * MiB))
    async with Emulator(tmp_path / "second", fsync=False) as second:
        addresses = {"one": here.emulator.endpoint_url, "two": second.endpoint_url}
        targets = {name: {"region": "eu-west-1", "endpoint_url": url} for name, url in addresses.items()}
        defaults = {"targets": list(targets), "repository": {"create": True}}
        plan = await read_plan(here.plan({"from": "team/app", "referrers": False}, targets=targets, defaults=defaults))
        with anyio.fail_after(60):
            report = await migrate_plan(plan, settings=Settings(max_memory=40 * MiB), retry=QUICK)

    assert Counter(outcomes(report).values()) == {"pushed": 16}


async def test_an_image_whose_referrers_are_tried_again_was_pushed_nonetheless(here: Bench) -> None:
    image = here.hold("team/app", "1", layer(1))
    signature = here.hold("team/app", f"sha256-{image['digest'][7:]}.sig", layer(9))
    left = [1]

    async def fails_once(request: web.Request) -> web.Response | None:
        asked = request.path.endswith(f"/blobs/{json_digests(here.layout, signature)[1]}")
        return web.Response(status=400) if asked and left and left.pop() else None

    here.source.rules.append(fails_once)
    report = await here.run(here.plan({"from": "team/app", "tags": ["1"]}))

    assert not left
    assert Counter(outcomes(report).values()) == {"pushed": 2}
    assert only(report, "team/app:1").layers_sent == 2


async def test_an_archive_goes_into_a_repository_that_nobody_may_look_for(here: Bench, tmp_path: Path) -> None:
    archive = tmp_path / "app.tar"
    archive.write_bytes(DockerSave().image(layer(1), tags=["app:1"]).archive())
    path = archive_plan(here, archive, "team/missing")
    async with relay_to(here.emulator.endpoint_url) as relay:
        denied = refused("AccessDeniedException", "not authorized to perform: ecr:DescribeRepositories")
        relay.plan("DescribeRepositories", *[denied] * 20)
        path.write_text(path.read_text().replace(here.emulator.endpoint_url, relay.url))
        report = await here.run(path)

    assert outcomes(report) == {"team/missing:1": "pushed"}


def two_platforms(here: Bench) -> list[Json]:
    """The images of an index that the source holds as ``team/app:1``."""
    children = [at(here.layout.image(layer(number), platform=name), name) for number, name in enumerate(PLATFORMS)]
    here.source.hold(here.layout, here.layout.index(*children), "team/app", "1")
    return children


def archive_plan(here: Bench, archive: Path, *repositories: str, kind: str = "docker-archive") -> Path:
    """A plan for an archive's images, into these repositories."""
    path = here.plan()
    document = json.loads(path.read_text())
    document["images"] = [{"from": f"{kind}:{archive}", "to": repository} for repository in repositories]
    path.write_text(json.dumps(document))
    return path


async def test_lines_of_one_repository_are_asked_for_together(here: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the journal for their layers alone: a repository may hold tens of thousands."""
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_ECR", here.emulator.endpoint_url)
    lines = []
    for number in range(12):
        here.hold(f"team/app-{number % 2}", str(number), layer(number % 2), layer(number + 10))
        lines.append(f"{here.source.host}/team/app-{number % 2}:{number} mirror/app-{number % 2}:v{number}")
    path = here.folder / "list"
    path.write_text("\n".join(lines))
    plain = {here.source.host: SourceRegistry(host=here.source.host, plain_http=True, anonymous=True)}
    plan = overridden(await read_plan(path), AwsConfiguration(), plain, create_repository=True)
    asked: list[object] = []
    completed = SqliteJournal.completed

    async def counted(journal: SqliteJournal, repository: str, digests: object = None) -> object:
        asked.append(digests)
        return await completed(journal, repository, digests)

    monkeypatch.setattr(SqliteJournal, "completed", counted)
    async with open_journal(here.folder / "plan.journal") as journal:
        first = await migrate_plan(plan, journal=journal, retry=QUICK)
        here.emulator.requests.clear()
        again = await migrate_plan(plan, journal=journal, retry=QUICK)

    assert Counter(outcomes(first).values()) == {"pushed": 12}
    assert Counter(outcomes(again).values()) == {"present": 12}
    assert here.emulator.requests.counts()["BatchGetImage"] == 2
    assert None not in asked


async def test_events_say_what_is_listed_and_what_a_retry_is_for(here: Bench) -> None:
    for number in range(3):
        here.hold(f"team/app-{number}", "1", layer(number))
    here.emulator.fault_config = FaultConfig(
        faults=(parse_fault("UploadLayerPart:nth=1:throttle"), parse_fault("PutImage:nth=1:server-error"))
    )
    events = Events()
    report = await here.run(here.plan(*({"from": f"team/app-{number}"} for number in range(3))), emit=events)

    assert [(event.repositories, event.total) for event in events.of(Listed)] == [(count, 3) for count in range(4)]
    part, put = sorted(events.of(Retrying), key=lambda event: event.operation, reverse=True)
    host = here.emulator.endpoint_url.rpartition("/")[2]
    destinations = {result.copy.destination for result in report.results}
    assert (part.operation, part.host, put.operation, put.host) == ("UploadLayerPart", host, "PutImage", host)
    assert part.layer in {event.layer for event in events.of(LayerStarted)}
    assert part.image.partition(":")[0] in part.layer
    assert {part.image, put.image} <= destinations
    assert (put.layer, part.throttled, put.throttled) == ("", True, False)
    assert report.traffic.retries == {"UploadLayerPart": 1, "PutImage": 1}
    assert report.traffic.throttled == {"UploadLayerPart": 1}
