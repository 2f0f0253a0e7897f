"""The options that several commands share, and how they become settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Group, Parameter, Token

from asyncpush.errors import UsageError
from asyncpush.model import Platform
from asyncpush.settings import AwsConfiguration, Compression, Credentials, Settings, SourceRegistry
from asyncpush.units import parse_duration, parse_size

_LIMITS = Group("Limits")
_AWS = Group("AWS")
_OUTPUT = Group("Output")
_LAYERS = Group("Layers")
_SOURCE = Group("Source registry")

_DEFAULTS = Settings()

OutputFormat = Literal["text", "json"]
ProgressFace = Literal["auto", "rich", "plain", "json", "none"]


def command(name: str, *, usage: str, epilogue: str) -> App:
    """The app of one command; its arguments and short help come from its function."""
    return App(
        name=name,
        usage=usage,
        help_epilogue=epilogue.strip("\n"),
        help_format="plaintext",
        version_flags=(),
        default_parameter=Parameter(negative="", show_default=False),
    )


def parse_platforms(text: str | None) -> tuple[Platform, ...]:
    """Read ``--platform``: platforms, separated by commas.

    Raises:
        UsageError: one of them is not a platform.
    """
    try:
        return tuple(dict.fromkeys(Platform.parse(word.strip()) for word in text.split(","))) if text else ()
    except ValueError as error:
        raise UsageError(str(error)) from error


def _to_size(_: object, tokens: Sequence[Token]) -> int:
    try:
        return parse_size(tokens[0].value)
    except UsageError as error:
        raise ValueError(str(error)) from error


def to_seconds(_: object, tokens: Sequence[Token]) -> float:
    """A converter of options that take a time."""
    try:
        return parse_duration(tokens[0].value)
    except UsageError as error:
        raise ValueError(str(error)) from error


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class LimitOptions:
    """What a push may use."""

    max_layers: Annotated[int, Parameter(group=_LIMITS, show_default=True)] = _DEFAULTS.max_layers
    """Layers in flight at once, over all images, at most: 32 at first, more as long as that is faster."""

    max_memory: Annotated[
        int, Parameter(group=_LIMITS, converter=_to_size, metavar="SIZE", show_default=lambda size: f"{size >> 20}MiB")
    ] = _DEFAULTS.max_memory
    """Memory for the parts in flight and the next ones."""

    part_size: Annotated[int | None, Parameter(group=_LIMITS, converter=_to_size, metavar="SIZE")] = None
    """Size of a part, 5MiB to 20MiB; by default what ECR asks for (10MiB)."""

    max_outage: Annotated[
        float,
        Parameter(
            group=_LIMITS, converter=to_seconds, metavar="TIME", show_default=lambda seconds: f"{seconds / 60:g}m"
        ),
    ] = _DEFAULTS.max_outage
    """How long to wait for an endpoint or registry that has answered before, and gives no answer now."""

    max_unpacked: Annotated[
        int, Parameter(group=_LIMITS, converter=_to_size, metavar="SIZE", show_default=lambda size: f"{size >> 30}GiB")
    ] = _DEFAULTS.max_unpacked
    """What a compressed or piped archive may take in TMPDIR."""

    early_parts: Annotated[bool, Parameter(group=_LIMITS, negative="")] = False
    """Send a layer's next part before ECR has answered the one before, where that pays; experimental."""


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class LayerOptions:
    """How an image's layers are treated."""

    platform: Annotated[str | None, Parameter(group=_LAYERS)] = None
    """Push one image of an index: OS/ARCH[/VARIANT]. Several, separated by commas, become an index of them. By default
    all of it is pushed."""

    available_platforms: Annotated[bool, Parameter(group=_LAYERS, negative="")] = False
    """Of an archive that lacks some platforms of an index, push an index of those that are there."""

    compression: Annotated[Compression, Parameter(group=_LAYERS, show_default=True)] = "gzip"
    """How a docker-archive's uncompressed layers are compressed."""

    compression_level: Annotated[int | None, Parameter(group=_LAYERS)] = None
    """gzip 1 to 9 (default 1), zstd 1 to 19 (default 3)."""

    push_foreign_layers: Annotated[bool, Parameter(group=_LAYERS)] = False
    """Push non-distributable layers, too."""


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class AwsOptions:
    """Which account, region and endpoint; the rest of the AWS configuration counts as for every AWS tool."""

    region: Annotated[str | None, Parameter(group=_AWS)] = None
    """The region, where the destination names none."""

    profile: Annotated[str | None, Parameter(group=_AWS)] = None
    """A profile of the AWS configuration."""

    endpoint_url: Annotated[str | None, Parameter(group=_AWS)] = None
    """Another endpoint than AWS's own, such as the emulator's."""


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class SourceOptions:
    """How a registry is reached that images are read from."""

    src_creds: Annotated[
        str | None, Parameter(group=_SOURCE, env_var="ASYNCPUSH_SRC_CREDS", metavar="USER:PASSWORD")
    ] = field(default=None, repr=False)
    """Its user and password, better in ASYNCPUSH_SRC_CREDS. By default what docker, podman or AWS have for it."""

    src_tls_verify: Annotated[bool, Parameter(group=_SOURCE, negative="--no-src-tls-verify")] = True
    """Check its TLS certificate; on by default."""

    src_plain_http: Annotated[bool, Parameter(group=_SOURCE)] = False
    """Speak plain HTTP with it."""

    src_ca_bundle: Annotated[Path | None, Parameter(group=_SOURCE, metavar="FILE")] = None
    """Authorities to trust beside the system's, in PEM."""

    src_cert: Annotated[Path | None, Parameter(group=_SOURCE, metavar="FILE")] = None
    """The client certificate that it asks for, in PEM."""

    src_key: Annotated[Path | None, Parameter(group=_SOURCE, metavar="FILE")] = None
    """The key of --src-cert, where that file does not hold it."""


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class OutputOptions:
    """What is printed."""

    output: Annotated[OutputFormat, Parameter(group=_OUTPUT, show_default=True)] = "text"
    """The result on standard output: as lines, or as one JSON document."""

    progress: Annotated[ProgressFace, Parameter(group=_OUTPUT, show_default=True)] = "auto"
    """Bars on a terminal, lines elsewhere; or JSON lines, or nothing."""

    quiet: Annotated[bool, Parameter(name=["--quiet", "-q"], group=_OUTPUT)] = False
    """Print the result and errors only."""

    verbose: Annotated[bool, Parameter(name=["--verbose", "-v"], group=_OUTPUT)] = False
    """Show where an error comes from."""

    @property
    def face(self) -> ProgressFace:
        """The progress face to use."""
        return "none" if self.quiet else self.progress


def make_aws(options: AwsOptions | None) -> AwsConfiguration:
    """What the options set over the AWS configuration."""
    options = options or AwsOptions()
    return AwsConfiguration(profile=options.profile, region=options.region, endpoint_url=options.endpoint_url)


def make_source_registry(options: SourceOptions | None, host: str) -> SourceRegistry:
    """How the options say that the registry at *host* is reached.

    Raises:
        UsageError: --src-creds is not USER:PASSWORD.
    """
    options = options or SourceOptions()
    credentials = None
    if options.src_creds is not None:
        user, colon, password = options.src_creds.partition(":")
        if not user or not colon:
            # It is not shown: it may be a password alone.
            raise UsageError("--src-creds (ASYNCPUSH_SRC_CREDS) has no user or no colon", hint="write USER:PASSWORD")
        credentials = Credentials(user, password)
    return SourceRegistry(
        host=host,
        plain_http=options.src_plain_http,
        verify=options.src_tls_verify,
        ca_bundle=options.src_ca_bundle,
        client_certificate=options.src_cert,
        client_key=options.src_key,
        credentials=credentials,
    )


def make_source_registries(options: SourceOptions | None, hosts: Sequence[str]) -> dict[str, SourceRegistry]:
    """How the options say that the registries at *hosts* are reached.

    Raises:
        UsageError: --src-creds is not USER:PASSWORD, or there are several hosts that what is for one would go to.
    """
    different = list(dict.fromkeys(hosts))
    if options and len(different) > 1 and (given := _for_one_registry(options)):
        raise UsageError(
            f"{given} is for one registry, and the sources are in {', '.join(different)}",
            hint="push them one by one, or write a plan: it says it for each",
        )
    return {host: make_source_registry(options, host) for host in different}


def _for_one_registry(options: SourceOptions) -> str | None:
    """What of *options* must not reach registries that it is not meant for, if anything was given."""
    given = {
        "--src-creds (ASYNCPUSH_SRC_CREDS)": options.src_creds is not None,
        "--src-plain-http": options.src_plain_http,
        "--no-src-tls-verify": not options.src_tls_verify,
        "--src-cert": options.src_cert is not None,
    }
    return next((name for name, is_given in given.items() if is_given), None)


def make_settings(
    limits: LimitOptions | None, layers: LayerOptions | None = None, *, create_repository: bool = False
) -> Settings:
    """The settings that the options ask for.

    Raises:
        UsageError: one of them is out of range.
    """
    limits, layers = limits or LimitOptions(), layers or LayerOptions()
    return Settings(
        max_layers=limits.max_layers,
        max_memory=limits.max_memory,
        part_size=limits.part_size,
        max_outage=limits.max_outage,
        max_unpacked=limits.max_unpacked,
        early_parts=limits.early_parts,
        compression=layers.compression,
        compression_level=layers.compression_level,
        push_foreign_layers=layers.push_foreign_layers,
        available_platforms=layers.available_platforms,
        create_repository=create_repository,
    )
