"""The region in errors: of a registry that lacks a repository, and of an endpoint that does not exist."""

from __future__ import annotations

from pathlib import Path

import pytest

from asyncpush.ecr.regions import unknown_region_hint
from support.commands import Server
from support.images import Layout


@pytest.mark.parametrize(
    ("endpoint", "hint"),
    [
        ("https://api.ecr.eu-wset-1.amazonaws.com", "eu-wset-1 is not a known region; did you mean eu-west-1?"),
        ("https://ecr-fips.us-eat-1.amazonaws.com", "us-eat-1 is not a known region; did you mean us-east-1?"),
        ("https://ecr.cn-nroth-1.api.amazonwebservices.com.cn", None),
        ("https://api.ecr.cn-nroth-1.amazonaws.com.cn", "cn-nroth-1 is not a known region; did you mean cn-north-1?"),
        ("https://api.ecr.zzz.amazonaws.com", "zzz is not a known region; see --region"),
        ("https://api.ecr.eu-west-1.amazonaws.com", None),
        ("https://ecr.example.com", None),
    ],
)
def test_a_region_that_botocore_does_not_know_is_named(endpoint: str, hint: str | None) -> None:
    assert unknown_region_hint(endpoint) == hint


def test_a_missing_repository_is_missing_in_a_region(server: Server, tmp_path: Path) -> None:
    layout = Layout()
    layout.tag(layout.image(b"layer"), "1").write(tmp_path / "layout")

    done = server.run("push", f"oci:{tmp_path / 'layout'}", "nowhere/app:1", AWS_REGION="ap-south-1")

    assert done.status == 1
    assert "create it in ap-south-1, or push with --create-repository; if it is in another region" in done.err
