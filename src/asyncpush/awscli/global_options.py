"""The options that every operation has, and whether a command is one of ``aws``'s; imports nothing that takes time."""

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
    GlobalOption("--debug", "debug", "on", "Log what botocore does on standard error, secrets blanked."),
    GlobalOption("--endpoint-url", "endpoint_url", "text", "Another endpoint than AWS's own."),
    GlobalOption("--no-verify-ssl", "verify_ssl", "off", "Do not check TLS certificates."),
    GlobalOption("--no-paginate", "paginate", "off", "Ask for one page only."),
    GlobalOption("--output", "output", "text", "The form of the answer.", OUTPUTS),
    GlobalOption("--query", "query", "text", "A JMESPath query that picks from the answer."),
    GlobalOption("--profile", "profile", "text", "A profile of the AWS configuration."),
    GlobalOption("--region", "region", "text", "The region."),
    GlobalOption("--color", "color", "text", "Colours in a table.", ("on", "off", "auto")),
    GlobalOption("--no-sign-request", "sign_request", "off", "Send no credentials."),
    GlobalOption("--ca-bundle", "ca_bundle", "text", "A file of certificate authorities for TLS."),
    GlobalOption("--cli-read-timeout", "read_timeout", "integer", "Seconds between two bytes of an answer; 0: any."),
    GlobalOption("--cli-connect-timeout", "connect_timeout", "integer", "Seconds to connect; 0: any."),
    GlobalOption("--cli-binary-format", "binary_format", "text", "How blobs are written as text.", BINARY_FORMATS),
    GlobalOption("--no-cli-pager", "pager", "off", "Taken, and always so: there is no pager."),
    GlobalOption("--no-cli-auto-prompt", "auto_prompt", "off", "Taken, and always so: nothing prompts."),
)


def is_aws_command(words: Sequence[str]) -> bool:
    """Whether these words are a command of ``aws``'s: its options, if any, and ``ecr`` or ``ecr-public``."""
    valued = {option.name for option in GLOBAL_OPTIONS if option.kind in ("text", "integer")}
    remaining = iter(words)
    for word in remaining:
        if word in valued:
            next(remaining, None)
        elif not word.startswith("--"):
            return word in SERVICES
    return False
