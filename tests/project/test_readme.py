"""What the README and the manual claim: their examples, their plans, their commands, their links."""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import yaml

from asyncpush.awscli.command import Command, read_command
from asyncpush.awscli.operations import operations
from asyncpush.cli.main import app
from asyncpush.emulator import Quirks, ThreadedEmulator
from asyncpush.emulator.faults.config import read_file, read_json
from support.commands import Server, cli_environment, run_cli, run_here
from support.images import Layout, app_layout, layer_tar
from support.places import ROOT
from support.questions import QUESTIONS

DOCS = ROOT / "src" / "asyncpush" / "docs"
README = ROOT / "README.md"
CONTRIBUTING = ROOT / ".github" / "CONTRIBUTING.md"
MANUAL = (README, *sorted(DOCS.glob("*.md")))

#: The registry of the examples.
HOST = "123456789012.dkr.ecr.eu-west-1.amazonaws.com"

#: Options of other programs, and one that the manual says does not exist.
FOREIGN = {"--tls-verify", "--dest-tls-verify", "--cli-error-format"}


def code(page: Path, *languages: str) -> list[str]:
    """The code blocks of *page* in these languages."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [block for language, block in found if language in languages]


def commands(block: str) -> list[list[str]]:
    """The commands of a shell block, one list of words each."""
    found: list[list[str]] = []
    for line in block.replace("|\n", "| ").replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>()")
        lexer.whitespace_split = True
        word_lists: list[list[str]] = [[]]
        for word in lexer:
            if re.fullmatch(r"[|&;<>()]+", word):
                word_lists.append([])
            else:
                word_lists[-1].append(word)
        found += filter(None, word_lists)
    return found


SHELL = [(page, words) for page in (*MANUAL, CONTRIBUTING) for block in code(page, "sh") for words in commands(block)]
OURS = [(page, words[1:]) for page, words in SHELL if Path(words[0]).name == "asyncpush"]


def test_every_code_block_is_of_a_kind_that_is_checked() -> None:
    for page in MANUAL:
        languages = set(re.findall(r"^```(\w*)\n.*?^```$", page.read_text(), flags=re.MULTILINE | re.DOTALL))
        assert languages <= {"sh", "python", "yaml", "json", "console"}, page


@pytest.mark.parametrize("page", [README, DOCS / "library.md"], ids=["README", "library"])
def test_the_example_of_a_push_runs_and_pushes(
    server: Server, tmp_path: Path, page: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    layout = Layout()
    image = layout.image(layer_tar(page.stem))
    layout.tag(image, "1.4").write(tmp_path / "build" / "app")
    created = server.run("push", tmp_path / "build" / "app", f"{HOST}/team/app:first", "--create-repository")
    assert created.status == 0, created.err
    monkeypatch.chdir(tmp_path)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    [example] = [block for block in code(page, "python") if "asyncpush.push(" in block]

    exec(compile(example, page.name, "exec"), {"__name__": "manual"})

    assert capsys.readouterr().out == f"{image['digest']} pushed 0\n"


def test_the_example_of_a_migration_migrates_and_verifies(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app_layout().write(tmp_path / "app")
    plan = {"version": 1, "images": [{"from": "oci:app", "to": "manual/app", "repository": {"create": True}}]}
    (tmp_path / "plan.yaml").write_text(json.dumps(plan))
    monkeypatch.chdir(tmp_path)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    [example] = [block for block in code(DOCS / "library.md", "python") if "migrate_plan" in block]

    exec(compile(example, "library.md", "exec"), {"__name__": "manual"})

    assert (tmp_path / "plan.journal").exists()
    assert server.run("verify", "plan.yaml").status == 0


def test_the_examples_of_tests_pass(tmp_path: Path) -> None:
    examples = [block for page in MANUAL for block in code(page, "python") if "def test_" in block]
    assert len(examples) == 4
    for number, example in enumerate(examples):
        (tmp_path / f"test_example_{number}.py").write_text(example)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")  # they need no configuration
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
    assert "4 passed" in done.stdout


def test_every_python_block_is_run_by_a_test() -> None:
    blocks = [block for page in MANUAL for block in code(page, "python")]

    for block in blocks:
        assert "def test_" in block or "asyncpush.push(" in block or "migrate_plan" in block
    assert len(blocks) == 7


def test_the_plans_are_right(tmp_path: Path) -> None:
    selection = {"tagStatus": "any", "countType": "imageCountMoreThan", "countNumber": 100}
    rules = [{"rulePriority": 1, "selection": selection, "action": {"type": "expire"}}]
    (tmp_path / "lifecycle.json").write_text(json.dumps({"rules": rules}))
    (tmp_path / "corporate-ca.pem").write_text("an authority")
    (tmp_path / "vendor").mkdir()
    (tmp_path / "vendor" / "appliance.tar").write_bytes(app_layout().archive())
    blocks = [block for page in MANUAL for block in code(page, "yaml")]
    plans = [block for block in blocks if block.startswith("version: 1\n")]
    rules_of_tags = [block for block in blocks if block.startswith("tags: ")]
    workflows = [block for block in blocks if "\njobs:\n" in block]
    fault_configs = [block for block in blocks if block not in plans + rules_of_tags + workflows]
    assert [len(plans), len(rules_of_tags), len(fault_configs), len(workflows)] == [2, 1, 1, 1]
    [step] = [step for step in yaml.safe_load(workflows[0])["jobs"]["push"]["steps"] if step.get("id") == "push"]
    assert "asyncpush push - team/app --tag" in step["run"]

    plans += [f"version: 1\nimages:\n- from: quay.io/team/app\n  {block}" for block in rules_of_tags]
    for number, plan in enumerate(plans):
        (tmp_path / f"{number}.yaml").write_text(plan)
        right = run_here("plan", "check", tmp_path / f"{number}.yaml", HUB_USER="user", HUB_TOKEN="token")
        assert right.status == 0, right.err
    [number] = [number for number, plan in enumerate(plans) if "HUB_USER" in plan]
    wrong = run_here("plan", "check", "--env", tmp_path / f"{number}.yaml")
    assert wrong.status == 2
    assert "HUB_USER" in wrong.err
    assert "HUB_TOKEN" in wrong.err
    (tmp_path / "faults.yaml").write_text(fault_configs[0])
    assert read_file(tmp_path / "faults.yaml").fault_config().faults[0].nth == 3


def test_the_manual_names_every_member_of_a_plan() -> None:
    page = (DOCS / "plan.md").read_text()
    schema = json.loads(run_here("plan", "schema").out)
    members = {name for part in (schema, *schema["$defs"].values()) for name in part["properties"]}

    assert "lifecycle_policy" in members
    assert {name for name in members if not re.search(rf"\b{name}\b", page)} == set()


@pytest.mark.parametrize("words", [words for _, words in OURS], ids=[" ".join(words)[:60] for _, words in OURS])
def test_every_command_takes_the_options_that_it_is_shown_with(words: list[str]) -> None:
    if words[0] in ("ecr", "ecr-public"):
        assert isinstance(read_command(words), Command)
    else:
        tokens = ["/dev/stdin" if word == "-" else word for word in words]
        _, arguments, ignored = app.parse_args(tokens, exit_on_error=False, print_error=False)
        assert arguments.args or arguments.kwargs or words[0] == "demo"
        assert not ignored


def test_every_command_is_shown() -> None:
    shown = {words[0] for _, words in OURS}
    existing = set(re.findall(r"^│ ([a-z][a-z-]*) ", run_here("--help").out, flags=re.MULTILINE))

    assert existing - shown == {"ecr-public", "help"}
    assert shown <= existing


def test_the_other_blocks_say_what_is_so() -> None:
    documents = [block for page in MANUAL for block in code(page, "json")]
    assert all(isinstance(json.loads(document), dict) for document in documents)
    [put] = [words for _, words in SHELL if words[0] == "curl"]
    assert read_json(put[-1].encode()).fault_config().faults[0].lag == 2
    exported = {word.partition("=")[0] for _, words in SHELL if words[0] == "export" for word in words[1:]}
    assert exported
    with ThreadedEmulator() as emulator:
        assert exported <= set(emulator.environment)


def test_skopeo_has_the_options_of_the_transcript(skopeo: str) -> None:
    [transcript] = [block for page in MANUAL for block in code(page, "console")]
    lines = [words for line in transcript.splitlines() if line.startswith("$ ") for words in commands(line[2:])]
    for words in [words for words in lines if words[0] == "skopeo"]:
        shown = subprocess.run([skopeo, words[1], "--help"], capture_output=True, text=True, check=True).stdout
        for option in [word.partition("=")[0] for word in words if word.startswith("--")]:
            assert option in shown


def test_no_page_names_an_option_that_does_not_exist() -> None:
    texts = [run_here(*words, "--help").out for words in _all_commands()]
    texts += [run_here("ecr", operation, "help").out for operation in operations("ecr")]
    texts += [path.read_text() for path in (ROOT / "benchmarks").glob("*.py")]
    texts.append((ROOT / "tests" / "conftest.py").read_text())  # pytest's own options
    existing = set(re.findall(r"--[a-z][a-z0-9-]*", "\n".join(texts))) | FOREIGN

    for page in MANUAL:
        prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        spans = " ".join(re.findall(r"`[^`]+`", prose))
        unknown = set(re.findall(r"--[a-z][a-z0-9-]*", spans)) - existing
        assert not unknown, page


def _all_commands() -> list[list[str]]:
    names = re.findall(r"^│ ([a-z][a-z-]*) ", run_here("--help").out, flags=re.MULTILINE)
    parts = {"plan": ("check", "import", "batch", "schema"), "journal": ("show", "export", "prune", "merge")}
    return [[name, *part] for name in names for part in [[], *([each] for each in parts.get(name, ()))]]


@pytest.mark.parametrize(
    "page", [*ROOT.glob("*.md"), *(ROOT / ".github").glob("*.md"), *DOCS.glob("*.md"), *ROOT.glob("*/README.md")],
    ids=lambda page: str(page.relative_to(ROOT)),
)  # fmt: skip
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not target.startswith("https://"):
            assert (page.parent / target).exists(), target


def test_the_readme_is_short_and_links_every_page() -> None:
    text = README.read_text()

    assert len(text.splitlines()) <= 150
    linked = set(re.findall(r"\(src/asyncpush/docs/([a-z-]+\.md)\)", text))
    assert linked == {page.name for page in DOCS.glob("*.md")}
    table = [line for line in text.splitlines() if line.startswith("| ")]
    assert set(table) <= set((DOCS / "performance.md").read_text().splitlines())
    [tests] = [line for line in text.splitlines() if "-m pytest" in line]
    assert tests.startswith("python3 -m venv .venv && .venv/bin/pip install -q '.[test]' && ")


def test_the_path_of_a_byte_is_as_the_readme_draws_it() -> None:
    inside = README.read_text().partition("## Inside")[2].partition("\n[Design]")[0]
    path = re.findall(r"`((?:[a-z]+/)?[a-z_]+)\.py`", inside)
    assert len(path) <= 12
    imported = {file: _imports(ROOT / "src" / "asyncpush" / f"{file}.py") for file in path}
    seam = path.index("protocols")

    for position, file in enumerate(path):
        before = set(path[:position])
        assert not imported[file] & (before - {"protocols"}), f"{file} turns back"
        # What is behind the seam is seen by nobody before it.
        begins = position == 0 or (position == seam + 1 and "protocols" in imported[file])
        assert begins or any(file in imported[earlier] for earlier in before), f"nobody before {file} imports it"


def _imports(file: Path) -> set[str]:
    tree = ast.parse(file.read_text())
    names = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    return {name.removeprefix("asyncpush.").replace(".", "/") for name in names if name.startswith("asyncpush.")}


def test_every_open_question_has_its_test_and_its_quirk() -> None:
    page = (DOCS / "ecr-facts.md").read_text()
    rows = dict(re.findall(r"^\| (.+?) \| (.+) \|$", page, flags=re.MULTILINE))
    for question in QUESTIONS:
        if question.quirks:
            default = getattr(Quirks(), question.quirks)
            assert rows[question.text].startswith(f"`{question.quirks.replace('_', '-')}` | `{default}` |")
        else:
            assert f"- {question.text}\n" in page
    quirks = {each.name for each in fields(Quirks) if isinstance(each.default, str)} - {"oci_conformance"}
    assert all(quirk.replace("_", "-") in page for quirk in quirks)


def test_contributing_names_every_variable_of_the_tests() -> None:
    sources = [*ROOT.glob("src/**/*.py"), *ROOT.glob("tests/**/*.py"), ROOT / ".ci" / "run"]
    used = {name for path in sources for name in re.findall(r"ASYNCPUSH_[A-Z_]+[A-Z]", path.read_text())}

    assert used
    assert used <= set(re.findall(r"`(ASYNCPUSH_[A-Z_]+)", CONTRIBUTING.read_text()))


def test_the_demonstration_proves_what_it_shows() -> None:
    done = run_cli("demo", timeout=100, AWS_PROFILE="a-profile-that-does-not-exist")

    assert done.status == 0, done.err
    for image in ("demo/shop/web:2.1", "demo/shop/web:2.2", "demo/shop/worker:3.0", "demo/ops/tools:24.04"):
        assert re.search(rf"^{image} +[0-9a-f]{{12}} .*already there +[0-9]+ digests ok$", done.out, flags=re.MULTILINE)
    assert re.search(r"^Second push: 0 bytes in .*, 4 requests \(4 BatchGetImage\)\.$", done.out, flags=re.MULTILINE)
