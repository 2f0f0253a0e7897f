"""What the AWS configuration says about a command: its form of output, of blobs and of times, and the retry mode."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import cast

import botocore.session
from botocore.exceptions import BotoCoreError

from asyncpush.awscli.errors import OTHER, CommandError
from asyncpush.awscli.global_options import BINARY_FORMATS, OUTPUTS, Globals, Output
from asyncpush.ecr.session import Transport
from asyncpush.settings import AwsConfiguration


@dataclass(frozen=True, slots=True)
class Configuration:
    """What counts for one command, from its options, the environment and the profile, in this order.

    Attributes:
        output: the form of the answer.
        binary_format: how blobs are written as text: ``base64`` or ``raw-in-base64-out``.
        wire_times: times are printed as they came, as numbers.
        retry_mode: botocore's; ``standard`` if nobody says otherwise, as for version 2.
    """

    output: Output
    binary_format: str
    wire_times: bool
    retry_mode: str


def read_configuration(options: Globals) -> Configuration:
    """Read what the profile says; blocks.

    Raises:
        CommandError: there is no such profile, or a value in it is none.
    """
    try:
        profile = botocore.session.Session(profile=options.profile or None).get_scoped_config()
    except BotoCoreError as error:
        raise CommandError(str(error), OTHER) from error
    output = options.output or os.environ.get("AWS_DEFAULT_OUTPUT") or profile.get("output") or "json"
    if output not in OUTPUTS:
        raise CommandError(f"Unknown output type: {output}", OTHER)
    binary_format = options.binary_format or profile.get("cli_binary_format") or "base64"
    if binary_format not in BINARY_FORMATS:
        raise CommandError(f"Invalid cli_binary_format: {binary_format}", OTHER)
    return Configuration(
        output=cast("Output", output),
        binary_format=binary_format,
        wire_times=profile.get("cli_timestamp_format") in ("wire", "none"),
        retry_mode=os.environ.get("AWS_RETRY_MODE") or profile.get("retry_mode") or "standard",
    )


def aws_configuration(options: Globals) -> AwsConfiguration:
    """Whom to ask, and as whom.

    Raises:
        CommandError: the endpoint has no scheme, or another than these.
    """
    url = options.endpoint_url
    if url is not None and not url.startswith(("http://", "https://")):
        raise CommandError(
            f'Bad value for --endpoint-url "{url}": scheme is {"unknown" if "://" in url else "missing"}.  '
            "Must be of the form http://<hostname>/ or https://<hostname>/"
        )
    return AwsConfiguration(profile=options.profile or None, region=options.region or None, endpoint_url=url)


def transport(options: Globals, retry_mode: str | None) -> Transport:
    """How the requests travel; *retry_mode* is None where asyncpush sends again itself."""
    return Transport(
        verify=False if not options.verify_ssl else options.ca_bundle,
        signed=options.sign_request,
        connect_timeout=options.connect_timeout or None,
        read_timeout=options.read_timeout or None,
        retry_mode=retry_mode,
    )
