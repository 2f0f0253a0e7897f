"""The options that several commands share, and the settings that they make."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from cyclopts import App, Group, Parameter, Token

from asyncpush.cli.streams import is_terminal
from asyncpush.errors import UsageError
from asyncpush.model import Platform
from asyncpush.progress import ProgressKind
from asyncpush.settings import (
    AwsConfiguration,
    Bandwidth,
    Compression,
    Credentials,
    Settings,
    SourceRegistry,
    TransportChoice,
)
from asyncpush.units import parse_duration, parse_size

_LIMITS = Group("Limits")
_AWS = Group("AWS")
_OUTPUT = Group("Output")
_LAYERS = Group("Layers")
_SOURCE = Group("Source registry")
_SHARDS = Group("Shards")

_DEFAULTS = Settings()

OutputFormat = Literal["text", "json"]


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
    """The converter of options that take a duration."""
    try:
        return parse_duration(tokens[0].value)
    except UsageError as error:
        raise ValueError(str(error)) from error


def _to_bandwidth(_: object, tokens: Sequence[Token]) -> Bandwidth:
    try:
        return Bandwidth.parse(tokens[0].value)
    except UsageError as error:
        raise ValueError(f"{error.message}: {error.hint}" if error.hint else str(error)) from error


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class LimitOptions:
    """The resources that a push may use."""

    max_layers: Annotated[int, Parameter(group=_LIMITS, show_default=True)] = _DEFAULTS.max_layers
    """Upload at most this many layers at once. asyncpush starts with 32 and adds more while that is faster."""

    max_memory: Annotated[
        int, Parameter(group=_LIMITS, converter=_to_size, metavar="SIZE", show_default=lambda size: f"{size >> 20}MiB")
    ] = _DEFAULTS.max_memory
    """Memory for parts that are in flight or being prepared."""

    part_size: Annotated[int | None, Parameter(group=_LIMITS, converter=_to_size, metavar="SIZE")] = None
    """Size of a part, from 5MiB to 20MiB. By default, the size that ECR asks for (10MiB)."""

    transport: Annotated[TransportChoice, Parameter(group=_LIMITS, show_default=True)] = "api"
    """How layers are sent: by ECR's API, as they are to the registry's /v2/ (a quarter fewer bytes), or v2 where it
    answers."""

    bandwidth: Annotated[
        Bandwidth | None,
        Parameter(group=_LIMITS, converter=_to_bandwidth, accepts_keys=False, n_tokens=1, metavar="RATE"),
    ] = None
    """Upload at most this much a second in total, such as 50MB/s; or by local time: '08:00,10MB/s 19:00,off'."""

    max_outage: Annotated[
        float,
        Parameter(
            group=_LIMITS, converter=to_seconds, metavar="TIME", show_default=lambda seconds: f"{seconds / 60:g}m"
        ),
    ] = _DEFAULTS.max_outage
    """Wait this long for an endpoint or registry that stops responding."""

    max_unpacked: Annotated[
        int, Parameter(group=_LIMITS, converter=_to_size, metavar="SIZE", show_default=lambda size: f"{size >> 30}GiB")
    ] = _DEFAULTS.max_unpacked
    """Disk space that a compressed or piped archive may take in TMPDIR."""

    early_parts: Annotated[bool, Parameter(group=_LIMITS, negative="")] = False
    """Send the next part of a layer before ECR acknowledges the last one, where that is faster. Experimental."""


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class LayerOptions:
    """Which of an image's layers are pushed, and how."""

    platform: Annotated[str | None, Parameter(group=_LAYERS)] = None
    """Push only these platforms of an index: OS/ARCH[/VARIANT], separated by commas. By default, push all of it."""

    available_platforms: Annotated[bool, Parameter(group=_LAYERS, negative="")] = False
    """If an archive lacks some platforms of an index, push an index of the platforms that it has."""

    compression: Annotated[Compression, Parameter(group=_LAYERS, show_default=True)] = "gzip"
    """Compression of layers that a docker-archive holds uncompressed."""

    compression_level: Annotated[int | None, Parameter(group=_LAYERS)] = None
    """gzip: 1 to 9 (default 1); zstd: 1 to 19 (default 3)."""

    push_foreign_layers: Annotated[bool, Parameter(group=_LAYERS)] = False
    """Push non-distributable layers as well."""


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class AwsOptions:
    """Which account, region and endpoint; the rest comes from the AWS configuration, as for every AWS tool."""

    region: Annotated[str | None, Parameter(group=_AWS)] = None
    """The region, if the destination does not name one."""

    profile: Annotated[str | None, Parameter(group=_AWS)] = None
    """The profile of the AWS configuration to use."""

    endpoint_url: Annotated[str | None, Parameter(group=_AWS)] = None
    """An endpoint to use instead of AWS's own, such as the emulator's."""


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class SourceOptions:
    """How the registry that images are read from is reached."""

    src_creds: Annotated[
        str | None, Parameter(group=_SOURCE, env_var="ASYNCPUSH_SRC_CREDS", metavar="USER:PASSWORD")
    ] = field(default=None, repr=False)
    """User and password; better set in ASYNCPUSH_SRC_CREDS. By default, those that docker, podman or AWS have."""

    src_tls_verify: Annotated[bool, Parameter(group=_SOURCE, negative="--no-src-tls-verify")] = True
    """Verify the TLS certificate; on by default."""

    src_plain_http: Annotated[bool, Parameter(group=_SOURCE)] = False
    """Use plain HTTP."""

    src_ca_bundle: Annotated[Path | None, Parameter(group=_SOURCE, metavar="FILE")] = None
    """Certificate authorities to trust in addition to the system's (PEM)."""

    src_cert: Annotated[Path | None, Parameter(group=_SOURCE, metavar="FILE")] = None
    """Client certificate (PEM)."""

    src_key: Annotated[Path | None, Parameter(group=_SOURCE, metavar="FILE")] = None
    """Private key of --src-cert, if that file does not contain it (PEM)."""


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class ShardOptions:
    """Which part of a plan this machine migrates."""

    shard: Annotated[str | None, Parameter(group=_SHARDS, metavar="I/N")] = None
    """Migrate only shard I of N, from 0. auto reads the array job of AWS Batch or Slurm; auto/N also Kubernetes'."""

    share: Annotated[str | None, Parameter(group=_SHARDS, metavar="1/P")] = None
    """Keep to this part of each of ECR's request quotas, since P shards run at once."""

    dask: Annotated[str | None, Parameter(group=_SHARDS, metavar="CLUSTER")] = None
    """Run all shards on a Dask cluster: tcp://SCHEDULER:8786, or local:N for N processes on this machine."""

    shards: Annotated[int | None, Parameter(group=_SHARDS, metavar="N")] = None
    """With --dask: divide the plan into N shards. By default, 64."""


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class OutputOptions:
    """What is printed."""

    output: Annotated[OutputFormat, Parameter(group=_OUTPUT, show_default=True)] = "text"
    """Format of the result on standard output: lines, or one JSON document."""

    progress: Annotated[ProgressKind, Parameter(group=_OUTPUT, show_default=True)] = "auto"
    """Format of the progress on standard error. auto shows bars on a terminal and lines elsewhere."""

    quiet: Annotated[bool, Parameter(name=["--quiet", "-q"], group=_OUTPUT)] = False
    """Print only the result and errors."""

    verbose: Annotated[bool, Parameter(name=["--verbose", "-v"], group=_OUTPUT)] = False
    """Show each result and failure, the requests by operation, and the traceback of an error."""

    @property
    def display(self) -> ProgressKind:
        """The progress display to use."""
        return "none" if self.quiet else self.progress

    @property
    def shows_each(self) -> bool:
        """Whether the progress display shows each result: at a terminal, the result itself does."""
        return self.verbose and not is_terminal()


def make_aws(options: AwsOptions | None) -> AwsConfiguration:
    """The AWS configuration that the options override."""
    options = options or AwsOptions()
    return AwsConfiguration(profile=options.profile, region=options.region, endpoint_url=options.endpoint_url)


def without_endpoint(name: str, options: AwsOptions | None) -> str:
    """*name* of a destination without the host of the endpoint that is set: so results name what is in an emulator."""
    environment = os.environ.get("AWS_ENDPOINT_URL_ECR") or os.environ.get("AWS_ENDPOINT_URL") or ""
    endpoint = (options and options.endpoint_url) or environment
    host = urlsplit(endpoint).netloc.rpartition("@")[2]
    return name.removeprefix(f"{host}/") if host else name


def make_source_registry(options: SourceOptions | None, host: str) -> SourceRegistry:
    """How to reach the registry at *host*, according to the options.

    Raises:
        UsageError: --src-creds is not USER:PASSWORD.
    """
    options = options or SourceOptions()
    credentials = None
    if options.src_creds is not None:
        user, colon, password = options.src_creds.partition(":")
        if not user or not colon:
            # It is not shown: it may be a password alone.
            raise UsageError(
                "--src-creds (ASYNCPUSH_SRC_CREDS) is not USER:PASSWORD",
                hint="write the user, a colon and the password",
            )
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
    """How to reach the registries at *hosts*, according to the options.

    Raises:
        UsageError: --src-creds is not USER:PASSWORD, or an option for one registry would apply to several hosts.
    """
    different = list(dict.fromkeys(hosts))
    if options and len(different) > 1 and (given := _for_one_registry(options)):
        raise UsageError(
            f"{given} is for one registry, and the sources are in {', '.join(different)}",
            hint="push them one by one, or write a plan, which sets it for each registry",
        )
    return {host: make_source_registry(options, host) for host in different}


def _for_one_registry(options: SourceOptions) -> str | None:
    """The first option given that must apply to one registry only; None if there is none."""
    given = {
        "--src-creds (ASYNCPUSH_SRC_CREDS)": options.src_creds is not None,
        "--src-plain-http": options.src_plain_http,
        "--no-src-tls-verify": not options.src_tls_verify,
        "--src-cert": options.src_cert is not None,
    }
    return next((name for name, is_given in given.items() if is_given), None)


def make_settings(
    limits: LimitOptions | None,
    layers: LayerOptions | None = None,
    *,
    create_repository: bool = False,
    quota_share: float | None = None,
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
        transport=limits.transport,
        max_outage=limits.max_outage,
        max_unpacked=limits.max_unpacked,
        early_parts=limits.early_parts,
        bandwidth=limits.bandwidth,
        compression=layers.compression,
        compression_level=layers.compression_level,
        push_foreign_layers=layers.push_foreign_layers,
        available_platforms=layers.available_platforms,
        create_repository=create_repository,
        quota_share=quota_share,
        assumes_quotas=quota_share is not None,
    )
