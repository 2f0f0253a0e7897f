"""ECR's open questions: the real one answers them with ``pytest -m aws --repository NAME -s``, the emulator always."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import boto3
import pytest
from anyio import to_thread

from asyncpush.emulator import Emulator, Quirks
from support.aws import judge
from support.questions import QUESTIONS, Ecr, Question, measured_parts

SWITCHES = [
    (question, value)
    for question in QUESTIONS
    if question.quirks
    for value in get_args(get_type_hints(Quirks)[question.quirks])
]


def ask(client: Any, question: Question) -> str:
    return question.ask(Ecr(client, "app"))


@pytest.mark.parametrize(
    ("question", "value"), SWITCHES, ids=[f"{question.quirks}-{value}" for question, value in SWITCHES]
)
async def test_each_open_question_finds_out_how_the_emulator_was_set(
    tmp_path: Path, question: Question, value: str
) -> None:
    quirks = Quirks(**{question.quirks: value})
    async with Emulator(tmp_path, part_size=1000, fsync=False, quirks=quirks) as emulator:
        client = judge(emulator.endpoint_url)
        await to_thread.run_sync(lambda: client.create_repository(repositoryName="app"))
        if value == "template":
            template = {"prefix": "ROOT", "appliedFor": ["CREATE_ON_PUSH"]}
            await to_thread.run_sync(lambda: client.create_repository_creation_template(**template))
        assert await to_thread.run_sync(ask, client, question) == value


async def test_questions_of_wording_are_answered_in_one_line_each(tmp_path: Path) -> None:
    async with Emulator(tmp_path, part_size=1000, fsync=False) as emulator:
        client = judge(emulator.endpoint_url)
        await to_thread.run_sync(lambda: client.create_repository(repositoryName="app"))
        answers = {
            question.text: await to_thread.run_sync(ask, client, question)
            for question in QUESTIONS
            if not question.quirks
        }
    codes = {
        "An upload that is unknown": "UploadNotFoundException (400): ",
        "A wrong digest": "InvalidLayerException (400): ",
        "An upload without parts": "EmptyUploadException (400): ",
        "A layer that is there already": "LayerAlreadyExistsException (400): ",
        "An image whose layer is not there": "LayersNotFoundException (400): ",
        "A byte far behind the last part": "InvalidLayerPartException (400): ",
    }
    assert {text: answers[text][: len(start)] for text, start in codes.items()} == codes
    assert answers["A byte far behind the last part"].endswith("lastValidByteReceived 999 after 1000 bytes")
    assert answers["Two parts on their way at once"].startswith("first: ")


@pytest.fixture
def real_client(request: pytest.FixtureRequest) -> Iterator[Any]:
    if not request.config.getoption("--repository"):
        pytest.skip("name a repository that may be written to: -m aws --repository NAME -s")
    client = boto3.client("ecr")
    yield client
    client.close()


@pytest.mark.aws
@pytest.mark.parametrize("question", QUESTIONS, ids=[question.text for question in QUESTIONS])
def test_ecr_answers(question: Question, real_client: Any, request: pytest.FixtureRequest) -> None:
    answer = question.ask(Ecr(real_client, request.config.getoption("--repository")))
    switch = f"   [{question.quirks}={answer}]" if question.quirks else ""
    print(f"\n{question.text}: {answer}{switch}")
    assert answer


@pytest.mark.aws
async def test_what_early_parts_gain(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    repository = request.config.getoption("--repository")
    if not repository:
        pytest.skip("name a repository that may be written to: -m aws --repository NAME -s")
    for ways in ((False, True), (True, False), (False, True)):
        for early in ways:
            print(f"\n{await measured_parts(repository, tmp_path / 'layer', early=early)}")
