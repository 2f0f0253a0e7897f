"""pytest's fixture of the emulator: synchronous clients use it, it starts empty again, and nobody waits for it."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from urllib.request import urlopen

import pytest

from asyncpush.emulator import ThreadedEmulator
from support.aws import judge
from support.commands import cli_environment
from support.places import ROOT

PYPROJECT = ROOT / "pyproject.toml"


def test_the_plugin_is_declared_and_imports_nothing_heavy() -> None:
    plugins = tomllib.loads(PYPROJECT.read_text())["project"]["entry-points"]["pytest11"]
    assert plugins == {"asyncpush": "asyncpush.emulator.pytest_plugin"}
    source = f"""
import sys, pytest
before = set(sys.modules)
import {plugins["asyncpush"]}
print(*sorted(set(sys.modules) - before))
"""
    done = subprocess.run(
        [sys.executable, "-c", source], env=cli_environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["asyncpush", "asyncpush.emulator", "asyncpush.emulator.pytest_plugin"]


def test_a_reset_empties_it_under_the_same_address_and_clients_go_on() -> None:
    with ThreadedEmulator() as emulator:
        url, ecr = emulator.endpoint_url, judge(emulator.endpoint_url)
        for _ in range(3):
            ecr.create_repository(repositoryName="app")
            assert emulator.counts == {"CreateRepository": 1}
            emulator.reset()
            assert emulator.endpoint_url == url
            assert emulator.requests == []
        assert ecr.describe_repositories()["repositories"] == []


def test_its_requests_can_be_asked_for_over_http() -> None:
    with ThreadedEmulator() as emulator:
        judge(emulator.endpoint_url).describe_repositories()
        with urlopen(f"{emulator.endpoint_url}/_emulator/requests") as answer:
            document = json.load(answer)
        assert document["counts"] == dict(emulator.counts) == {"DescribeRepositories": 1}
        assert document["requests"] == [{"operation": "DescribeRepositories", "status": 200}]


def test_its_environment_is_all_that_a_client_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadedEmulator() as emulator:
        done = subprocess.run(
            [sys.executable, "-c", "import boto3; print(boto3.client('ecr').describe_repositories()['repositories'])"],
            env=cli_environment(**emulator.environment),
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.stdout == "[]\n", done.stderr
