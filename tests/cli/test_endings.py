"""However a command ends, its JSON is one whole document, and its events are whole lines that end with `end`."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import anyio
import pytest

from support.commands import Ran, Server, cli_environment, run_beside
from support.images import Layout, layer_tar
from support.processes import ended, started
from support.relay import caught, refused, relay_to

JSON = ("--output", "json", "--progress", "json")

REFUSED = refused("UnrecognizedClientException", "The security token included in the request is invalid")


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """Two layouts, whose second layer is hung up on, two files, a plan of both layouts, and of nothing else."""
    for name in ("one", "two"):
        made = Layout()
        made.tag(made.image(layer_tar(name)), "1").write(tmp_path / name)
        (tmp_path / f"{name}.layer").write_text(name)
    images = [{"from": f"oci:{name}", "to": f"ends/{name}"} for name in ("one", "two")]
    plan = {"version": 1, "defaults": {"repository": {"create": True}}, "images": images}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    return tmp_path


def commands(work: Path) -> dict[str, list[str]]:
    """Each command that pushes, with two things to push; a single push has one."""
    create = "--create-repository"
    return {
        "push": ["push", f"oci:{work}/two", "ends/single:1", create],
        "batch": ["push", f"oci:{work}/one", f"oci:{work}/two", "--to", "ends/batch", create],
        "layers": ["layers", f"{work}/one.layer", f"{work}/two.layer", "--repository-name", "ends/layers", create],
        "migrate": ["migrate", f"{work}/plan.json", "--no-resume"],
    }


def checked(ran: Ran) -> dict[str, Any]:
    """The document on standard output, which is one and whole; so is each line of the events, which end with `end`."""
    document: dict[str, Any] = json.loads(ran.out)
    assert document["version"] == 1
    events = [json.loads(line) for line in ran.err.splitlines() if line.startswith("{")]
    if events:
        assert [event["type"] for event in events].index("end") == len(events) - 1
        first, last = ran.err.index("{"), ran.err.rindex("{")
        assert all(line.startswith("{") for line in ran.err[first:last].splitlines())
    return document


def outcomes(document: dict[str, Any]) -> list[str]:
    """How each thing ended: of what failed, the reason."""
    things = document.get("images") or document.get("layers") or []
    return [thing["error"]["message"] if thing["outcome"] == "failed" else thing["outcome"] for thing in things]


async def test_a_signal_leaves_whole_json_that_names_what_was_not_done(server: Server, work: Path) -> None:
    """The first of two things is there already, and what the second one needs is never answered."""
    ran: dict[str, Ran] = {}

    async def interrupt(name: str, words: list[str], number: signal.Signals) -> None:
        async with relay_to(server.url) as relay:
            arrived, written = anyio.Event(), b""
            relay.plan("CompleteLayerUpload", caught(arrived), caught(arrived))
            environment = cli_environment(**{**server.environment, "AWS_ENDPOINT_URL_ECR": relay.url})
            async with started("-m", "asyncpush", *words, *JSON, env=environment) as process:
                assert process.stderr is not None
                with anyio.fail_after(30):
                    await arrived.wait()
                    while name in ("batch", "migrate") and b"image-done" not in written:
                        written += await process.stderr.receive()
                process.send_signal(number)
                status, out, rest = await ended(process)
                ran[name] = Ran(status, out, written.decode() + rest)

    for words in (["push", f"oci:{work}/one", "ends/batch/one:1"], ["push", f"oci:{work}/one", "ends/one:1"]):
        assert (await run_beside(*words, "--create-repository", **server.environment)).status == 0
    layer = ["layers", f"{work}/one.layer", "--repository-name", "ends/layers", "--create-repository"]
    assert (await run_beside(*layer, **server.environment)).status == 0
    async with anyio.create_task_group() as tg:
        for at, (name, words) in enumerate(commands(work).items()):
            tg.start_soon(interrupt, name, words, signal.SIGTERM if at % 2 else signal.SIGINT)

    for at, name in enumerate(commands(work)):
        document = checked(ran[name])
        assert ran[name].status == (143 if at % 2 else 130), name
        assert outcomes(document) == (["interrupted"] if name == "push" else ["present", "interrupted"]), name
        assert (document["stopped"]["code"], document["stopped"]["origin"]) == ("Interrupted", "signal")
        assert ran[name].err.splitlines()[-1].startswith("asyncpush: interrupted")
        assert '"type": "end"' in ran[name].err


async def test_every_failure_leaves_whole_json_that_names_what_failed(server: Server, work: Path) -> None:
    """Nothing answers; credentials are missing, or refused in the middle; the sources can't be read, all or one."""
    nowhere = {**server.environment, "AWS_ENDPOINT_URL_ECR": "http://127.0.0.1:9"}
    anonymous = {**server.environment, "AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}

    async def fail(environment: dict[str, str], status: int, reason: str) -> None:
        for name, words in commands(work).items():
            ran = await run_beside(*words, *JSON, "--max-outage", "1ms", **environment)
            found = outcomes(checked(ran))
            assert ran.status == status, (name, ran.err)
            assert len(found) == (1 if name == "push" else 2), (name, found)
            assert all(outcome in ("present", "pushed") or reason in outcome for outcome in found), (name, found)
            assert any(reason in outcome for outcome in found), (name, found)

    await fail(nowhere, 1, "127.0.0.1:9")
    await fail(anonymous, 4, "no AWS credentials found")
    async with relay_to(server.url) as relay:
        relay.plan("InitiateLayerUpload", *[REFUSED] * 100)  # more than all commands ask together
        await fail({**server.environment, "AWS_ENDPOINT_URL_ECR": relay.url}, 4, "UnrecognizedClientException")
    (work / "two" / "index.json").write_text("{")
    (work / "two.layer").unlink()
    await fail(server.environment, 1, "two")
    (work / "plan.json").write_text("{")
    migrated = run_beside("migrate", work / "plan.json", *JSON, **server.environment)
    assert "plan.json" in checked(await migrated)["stopped"]["message"]
