"""The README's claims that can be run: its example, its tables, its commands."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from support.commands import Server, cli_environment, run_cli, run_here
from support.images import Layout, app_layout, layer_tar
from support.places import ROOT

#: The registry of its example.
HOST = "123456789012.dkr.ecr.eu-west-1.amazonaws.com"

README = (ROOT / "README.md").read_text()


def code(language: str) -> list[str]:
    """The README's code blocks in *language*."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def test_the_example_runs_and_pushes(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    layout = Layout()
    image = layout.image(layer_tar("base"))
    layout.tag(image, "1.4").write(tmp_path / "build" / "app")
    created = server.run("push", tmp_path / "build" / "app", f"{HOST}/team/app:first", "--create-repository")
    assert created.status == 0, created.err
    monkeypatch.chdir(tmp_path)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    example = code("python")[0]

    exec(compile(example, "README.md", "exec"), {"__name__": "readme"})

    assert capsys.readouterr().out == f"{image['digest']} pushed 0\n"


@pytest.mark.parametrize("number", [1, 2])
def test_the_examples_of_tests_pass(tmp_path: Path, number: int) -> None:
    assert len(code("python")) == 3
    (tmp_path / "test_example.py").write_text(code("python")[number])
    (tmp_path / "pytest.ini").write_text("[pytest]\nanyio_mode = auto\n")
    (tmp_path / "conftest.py").write_text("import pytest\n@pytest.fixture\ndef anyio_backend(): return 'asyncio'\n")
    is_installed = any(plugin.name == "asyncpush" for plugin in entry_points(group="pytest11"))
    words = [] if is_installed else ["-p", "asyncpush.emulator.pytest_plugin"]

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *words, str(tmp_path)],
        cwd=tmp_path,
        env=cli_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


def test_its_plan_is_right(tmp_path: Path) -> None:
    [plan] = [block for block in code("yaml") if block.startswith("version: 1\n")]
    (tmp_path / "plan.yaml").write_text(plan)
    selection = {"tagStatus": "any", "countType": "imageCountMoreThan", "countNumber": 100}
    rules = [{"rulePriority": 1, "selection": selection, "action": {"type": "expire"}}]
    (tmp_path / "lifecycle.json").write_text(json.dumps({"rules": rules}))
    (tmp_path / "corporate-ca.pem").write_text("an authority")
    (tmp_path / "vendor").mkdir()
    (tmp_path / "vendor" / "appliance.tar").write_bytes(app_layout().archive())

    right = run_cli("plan", "check", tmp_path / "plan.yaml", HUB_USER="user", HUB_TOKEN="token")
    assert right.status == 0, right.err
    wrong = run_cli("plan", "check", tmp_path / "plan.yaml")
    assert wrong.status == 2
    assert "HUB_USER" in wrong.err
    assert "HUB_TOKEN" in wrong.err


def test_every_command_that_it_shows_exists() -> None:
    commands = set(re.findall(r"asyncpush ([a-z]+)", "\n".join(code("sh")))) | {"layers", "journal"}

    assert commands == {"bench", "demo", "ecr", "journal", "layers", "migrate", "plan", "push", "serve", "verify"}
    for command in commands:
        assert run_here(command, "--help").status == 0


def test_the_demonstration_proves_what_it_shows() -> None:
    done = run_cli("demo", timeout=100, AWS_PROFILE="a-profile-that-does-not-exist")

    assert done.status == 0, done.err
    for image in ("demo/shop/web:2.1", "demo/shop/web:2.2", "demo/shop/worker:3.0", "demo/ops/tools:24.04"):
        assert re.search(rf"^{image} +[0-9a-f]{{12}} .*already there +[0-9]+ digests ok$", done.out, flags=re.MULTILINE)
    assert re.search(r"^Second push: 0 bytes in .*, 4 requests \(4 BatchGetImage\)\.$", done.out, flags=re.MULTILINE)
