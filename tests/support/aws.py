"""Connections to an emulator, and independent clients that look into it: boto3, and the password of ``/v2/``."""

from __future__ import annotations

import base64
import json
import os
from typing import Any

import boto3
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.httpsession import URLLib3Session

from asyncpush import AwsConfiguration
from asyncpush.emulator import Quirks

KEYS = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
REGION = "eu-west-1"

#: How the emulator of the client's tests answers open questions: ``NAME=VALUE,...``; both answers must do.
QUIRKS = Quirks.parse(filter(None, os.environ.get("ASYNCPUSH_QUIRKS", "").split(",")))


def aws(endpoint_url: str) -> AwsConfiguration:
    """How to reach an endpoint, with made-up credentials."""
    return AwsConfiguration(region=REGION, endpoint_url=endpoint_url, access_key_id="test", secret_access_key="test")


def judge(endpoint_url: str, service: str = "ecr", **keys: str) -> Any:
    """boto3's own client: an independent reading of the protocol. It blocks; call it in a worker thread."""
    return boto3.client(service, endpoint_url=endpoint_url, region_name=REGION, **(keys or KEYS))


def token(endpoint_url: str) -> str:
    """What ``Authorization: Basic`` needs at ``/v2/``: the user AWS and its password. It blocks."""
    [grant] = judge(endpoint_url).get_authorization_token()["authorizationData"]
    return grant["authorizationToken"]


def password(endpoint_url: str) -> str:
    """The password of the user AWS at ``/v2/``. It blocks."""
    return base64.b64decode(token(endpoint_url)).decode().removeprefix("AWS:")


def call_new(endpoint_url: str, operation: str, region: str = REGION, **members: Any) -> Any:
    """Call an operation that boto3 does not know yet; the answer, or the error's code. It blocks."""
    request = AWSRequest(
        "POST",
        f"{endpoint_url}/",
        data=json.dumps(members).encode(),
        headers={
            "X-Amz-Target": f"AmazonEC2ContainerRegistry_V20150921.{operation}",
            "Content-Type": "application/x-amz-json-1.1",
        },
    )
    SigV4Auth(Credentials("test", "test"), "ecr", region).add_auth(request)
    answer = URLLib3Session().send(request.prepare())
    document = json.loads(answer.content)
    return document if answer.status_code == 200 else document["__type"]


def judge_in(endpoint_url: str, region: str, service: str = "ecr") -> Any:
    """boto3's own client in another region."""
    return boto3.client(service, endpoint_url=endpoint_url, region_name=region, **KEYS)
