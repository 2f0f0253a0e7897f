"""The start of a push, without a clock: what it must not import, and which certificates it must not load."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from support.commands import Server, cli_environment
from support.images import Layout, layer_tar

#: What a push of a layout over HTTP, with its keys in the environment, has no use for.
UNUSED = (
    "aiohttp.web",
    "asyncpush.awscli.command",
    "asyncpush.bench",
    "asyncpush.demo",
    "asyncpush.emulator",
    "asyncpush.journal",
    "asyncpush.migrate",
    "asyncpush.sources.docker_archive",
    "asyncpush.sources.tar_index",
    "asyncpush.sources.registry.client",
    "asyncpush.sources.registry.source_registry",
    "asyncpush.verify",
    "isal",
    "rich",
    "s3transfer",
    "sqlite3",
    "tarfile",
    "yaml",
)

#: Runs the command, and prints what it has imported, and from where it has loaded certificate authorities.
PROGRAM = """
import json, os, ssl, sys

loaded = []

def load_default(context):
    loaded.append(os.environ.get("SSL_CERT_FILE", "the system"))

def load_file(context, *files, **more):
    loaded.append(str(files or more))

ssl.SSLContext.set_default_verify_paths = load_default
ssl.SSLContext.load_verify_locations = load_file

import botocore.hooks
from asyncpush.__main__ import main

try:
    main()
finally:
    kept = {name: os.environ.get(name) for name in ("SSL_CERT_FILE", "SSL_CERT_DIR")}
    print(json.dumps({"modules": sorted(sys.modules), "loaded": loaded, "kept": kept}), file=sys.stderr)
"""


def test_a_push_imports_and_loads_no_more_than_it_needs(server: Server, tmp_path: Path) -> None:
    layout = Layout()
    layout.tag(layout.image(layer_tar("start")), "1").write(tmp_path / "layout")
    command = [sys.executable, "-c", PROGRAM, "push", f"oci:{tmp_path / 'layout'}", "start/app:1"]
    options = ["--create-repository", "--quiet"]
    environment = cli_environment(**server.environment, SSL_CERT_FILE="/mine.pem", SSL_CERT_DIR="")

    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False, env=environment)

    assert done.returncode == 0, done.stderr
    told = json.loads(done.stderr.splitlines()[-1])
    assert [name for name in UNUSED if name in told["modules"]] == []
    assert {"aioboto3", "aiohttp", "anyio"} <= set(told["modules"])
    # aiohttp's own contexts, made at its import, and no other.
    assert set(told["loaded"]) == {"/dev/null"}
    assert told["kept"] == {"SSL_CERT_FILE": "/mine.pem", "SSL_CERT_DIR": None}


def test_the_help_imports_no_client() -> None:
    code = "import sys; from asyncpush.cli.main import run_app; run_app(['--help']); print(*sorted(sys.modules))"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    modules = set(done.stdout.splitlines()[-1].split())
    assert modules.isdisjoint({"aiohttp", "anyio", "asyncio", "asyncpush.api", "botocore", "importlib.metadata", "ssl"})
    assert "cyclopts" in modules
