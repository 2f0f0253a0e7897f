"""The options that every operation has, and which commands are those of ``aws``; imports only the standard library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

SERVICES = ("ecr", "ecr-public")

Output = Literal["json", "text", "table", "yaml", "yaml-stream"]
OUTPUTS = ("json", "text", "table", "yaml", "yaml-stream")

BINARY_FORMATS = ("base64", "raw-in-base64-out")


@dataclass(frozen=True, slots=True)
class GlobalOption:
    """An option that may stand anywhere in a command.

    Attributes:
        name: what is written.
        member: the field of ``Globals`` that it sets.
        kind: what follows it; ``on`` and ``off`` stand alone, and set True and False.
        help: what it does.
        choices: the values that it takes, if not any.
    """

    name: str
    member: str
    kind: Literal["text", "integer", "on", "off"]
    help: str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Globals:
    """What the options that every operation has were given; None where the AWS configuration decides."""

    debug: bool = False
    endpoint_url: str | None = None
    verify_ssl: bool = True
    paginate: bool = True
    output: Output | None = None
    query: str | None = None
    profile: str | None = None
    region: str | None = None
    color: Literal["on", "off", "auto"] = "auto"
    sign_request: bool = True
    ca_bundle: str | None = None
    read_timeout: int = 60
    connect_timeout: int = 60
    binary_format: str | None = None
    pager: bool = True
    auto_prompt: bool = False


GLOBAL_OPTIONS = (
    GlobalOption("--debug", "debug", "on", "Write botocore's log to standard error, without secrets."),
    GlobalOption("--endpoint-url", "endpoint_url", "text", "The endpoint to use instead of AWS's own."),
    GlobalOption("--no-verify-ssl", "verify_ssl", "off", "Do not verify TLS certificates."),
    GlobalOption("--no-paginate", "paginate", "off", "Request only one page."),
    GlobalOption("--output", "output", "text", "The format of the response.", OUTPUTS),
    GlobalOption("--query", "query", "text", "A JMESPath query to filter the response."),
    GlobalOption("--profile", "profile", "text", "The profile of the AWS configuration to use."),
    GlobalOption("--region", "region", "text", "The region."),
    GlobalOption("--color", "color", "text", "Whether tables are coloured.", ("on", "off", "auto")),
    GlobalOption("--no-sign-request", "sign_request", "off", "Do not sign requests."),
    GlobalOption("--ca-bundle", "ca_bundle", "text", "The certificate authorities to trust (PEM)."),
    GlobalOption("--cli-read-timeout", "read_timeout", "integer", "Seconds to wait for a response; 0 waits forever."),
    GlobalOption(
        "--cli-connect-timeout", "connect_timeout", "integer", "Seconds to wait for a connection; 0 waits forever."
    ),
    GlobalOption("--cli-binary-format", "binary_format", "text", "The encoding of binary parameters.", BINARY_FORMATS),
    GlobalOption("--no-cli-pager", "pager", "off", "Accepted without effect: there is no pager."),
    GlobalOption("--no-cli-auto-prompt", "auto_prompt", "off", "Accepted without effect: there are no prompts."),
)


def is_aws_command(words: Sequence[str]) -> bool:
    """Whether *words* are a command of the aws CLI: its options, if any, and ``ecr`` or ``ecr-public``."""
    valued = {option.name for option in GLOBAL_OPTIONS if option.kind in ("text", "integer")}
    remaining = iter(words)
    for word in remaining:
        if word in valued:
            next(remaining, None)
        elif not word.startswith("--"):
            return word in SERVICES
    return False
