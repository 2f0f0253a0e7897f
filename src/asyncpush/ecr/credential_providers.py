"""The providers of AWS credentials: botocore's own, run in a worker thread, with one-line errors that name them.

aiobotocore's providers read files, prompt for MFA codes and wait for the metadata service on the event loop, let a
credential_process read the terminal's standard input, and raise whatever goes wrong inside them.
"""

from __future__ import annotations

import os
import re
import select
import string
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import botocore.exceptions as bce
import botocore.session
from anyio import from_thread
from botocore.config import Config
from botocore.credentials import (
    ContainerProvider,
    InstanceMetadataProvider,
    ProcessProvider,
    ReadOnlyCredentials,
    create_credential_resolver,
)
from botocore.parsers import ResponseParserError
from botocore.utils import ContainerMetadataFetcher

from asyncpush.ecr.configuration import (
    configure_session,
    describe_os_error,
    describe_parse_error,
    one_line,
    printable,
    session_variables,
    translate_configuration_errors,
)
from asyncpush.ecr.credential_http import CredentialHttp, run_on_event_loop
from asyncpush.ecr.credential_process import ProfileProviders
from asyncpush.ecr.errors import CLOCK_HINT, RedirectError, is_wrong_time
from asyncpush.errors import AsyncpushError, CredentialsError
from asyncpush.files import read_small
from asyncpush.settings import AwsConfiguration

#: The most bytes of a token file, for a web identity or for the container credentials endpoint.
_MAX_TOKEN_SIZE = 1024 * 1024

#: Seconds that the user may take to type an MFA code.
_MFA_TIMEOUT = 300.0

#: The clients of STS and SSO: every wait ends, and a dead endpoint or proxy is reported within seconds.
CLIENT_CONFIG = Config(connect_timeout=5, read_timeout=10, retries={"mode": "standard", "total_max_attempts": 3})

_NO_PROVIDER_HINT = "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"

#: By botocore's name of a provider: its description, and a hint for when it fails.
_PROVIDERS = {
    "env": (
        "the environment",
        "set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, if they are temporary, AWS_SESSION_TOKEN",
    ),
    "assume-role": (
        "role {role_arn} of profile {profile!r}",
        "check the role, its trust policy and the credentials that assume it",
    ),
    "assume-role-with-web-identity": (
        "the web identity token file {token_file}",
        "check AWS_WEB_IDENTITY_TOKEN_FILE and AWS_ROLE_ARN, or the profile's",
    ),
    "sso": ("{sso} of profile {profile!r}", "run `aws sso login --profile {profile}`"),
    "shared-credentials-file": ("profile {profile!r} in {credentials_file}", "check the profile's keys"),
    "custom-process": ("the credential_process of profile {profile!r}", "run that command by hand"),
    "config-file": ("profile {profile!r} in {config_file}", "check the profile's keys"),
    "ec2-credentials-file": ("the file that AWS_CREDENTIAL_FILE names", "check it, or unset AWS_CREDENTIAL_FILE"),
    "boto-config": ("boto's configuration", "check it"),
    "container-role": (
        "the container credentials endpoint",
        "check AWS_CONTAINER_CREDENTIALS_FULL_URI, or AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    ),
    "iam-role": ("the instance metadata service", f"check the instance's role, or {_NO_PROVIDER_HINT}"),
}

#: How dateutil's errors for an invalid time begin.
_INVALID_TIME = ("Unknown string format", "String does not contain a date")
#: How botocore's errors begin that contain nothing secret.
_HARMLESS = ("Unsupported host", "Auth token value", "Invalid endpoint")

#: What botocore's providers and parsers are known to raise, and what reading files and running processes can raise.
_FAILURES = (
    bce.BotoCoreError,
    bce.ClientError,
    ResponseParserError,
    ArithmeticError,
    AttributeError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True, slots=True)
class FoundCredentials:
    """Credentials from a provider.

    Attributes:
        keys: the access key, the secret key and the session token.
        expires_at: when they expire, in seconds since 1970; None if they do not, or if that is unknown.
        provider: the description of their provider.
        hint: what to do if they do not work.
        method: botocore's name of their provider; empty for keys that the caller gave.
    """

    keys: ReadOnlyCredentials = field(repr=False)
    expires_at: float | None
    provider: str
    hint: str
    method: str = ""


class _TokenFile:
    """Reads the token of a web identity as botocore does, but limits its size and the time that it may take."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)

    def __call__(self) -> str:
        return read_small(self._path, _MAX_TOKEN_SIZE).decode()


class _Session(botocore.session.Session):  # type: ignore[misc] # botocore is untyped
    """A session that registers botocore's handlers with its first client: most providers of credentials need none."""

    def __init__(self, *, session_vars: Mapping[str, Any]) -> None:
        super().__init__(session_vars=session_vars, include_builtin_handlers=False)
        self._has_handlers = False

    def create_client(self, *args: Any, **options: Any) -> Any:
        if not self._has_handlers:
            self._has_handlers = True
            self._register_builtin_handlers(self._events)
        return super().create_client(*args, **options)


class CredentialFinder:
    """Finds credentials as every AWS tool does; it blocks, and must run in a worker thread.

    Args:
        aws: overrides the environment and the configuration files.
        region: the region of STS.
    """

    def __init__(self, aws: AwsConfiguration, region: str | None) -> None:
        self._aws = aws
        self._region = region
        self._session: Any = None
        self._metadata: CredentialHttp | None = None
        self._may_prompt = True

    def find(self, may_prompt: bool) -> FoundCredentials:
        """Find the credentials.

        Args:
            may_prompt: whether the user may be prompted for an MFA code, as before the first request.

        Raises:
            CredentialsError: there are none, or their provider, which the message names, fails.
            ConfigurationError: the configuration can't be read.
        """
        self._may_prompt = may_prompt
        aws = self._aws
        if aws.access_key_id:
            keys = ReadOnlyCredentials(aws.access_key_id, aws.secret_access_key or "", None)
            return _checked(FoundCredentials(keys, None, "the given access key", "check the access key"))
        if self._session is None:
            session = configure_session(_Session(session_vars=session_variables()), aws, self._region)
            session.set_default_client_config(CLIENT_CONFIG)
            http = self._http(session, CLIENT_CONFIG.connect_timeout, CLIENT_CONFIG.read_timeout)
            session.register("before-send", lambda request, **_: http.send(request))
            self._session = session
        with translate_configuration_errors():
            # A new resolver each time: a provider of roles works only once.
            resolver = create_credential_resolver(self._session, region_name=self._region)
        self._adapt(resolver)
        for provider in resolver.providers:
            name, hint = self._describe(provider.METHOD)
            with self._translate_failures(provider.METHOD, name, hint):
                loaded = provider.load()
                if loaded is None:
                    continue
                # Private attributes, since the accessors would renew what was just loaded.
                keys = getattr(loaded, "_frozen_credentials", None) or loaded.get_frozen_credentials()
                expiry: datetime | None = getattr(loaded, "_expiry_time", None)
                expires_at = expiry.timestamp() if expiry else None
                return _checked(FoundCredentials(keys, expires_at, name, hint, provider.METHOD))
        error = bce.NoCredentialsError()
        name, hint = self._describe("iam-role")
        if self._metadata is not None and self._metadata.last_answer:
            raise CredentialsError(
                f"no AWS credentials found: {name} {self._metadata.last_answer}", hint=hint
            ) from error
        raise CredentialsError("no AWS credentials found", hint=_NO_PROVIDER_HINT) from error

    @staticmethod
    def _http(session: Any, connect_timeout: float, read_timeout: float) -> CredentialHttp:
        bundle = session.get_config_variable("ca_bundle")
        return CredentialHttp(verify=bundle, connect_timeout=connect_timeout, read_timeout=read_timeout)

    def _adapt(self, resolver: Any) -> None:
        """Replace what would read standard input, wait without a timeout, or use variables that are empty."""
        builder = ProfileProviders(self._session, self._region, self._aws.credential_timeout)
        roles = resolver.get_provider("assume-role")
        roles._profile_provider_builder = builder  # noqa: SLF001 - botocore has no parameter for these
        roles._prompter = self._prompt_for_code  # noqa: SLF001
        environment = {name: value for name, value in os.environ.items() if value}
        for position, provider in enumerate(resolver.providers):
            if isinstance(provider, ProcessProvider):
                resolver.providers[position] = builder.process(self._profile)
            elif isinstance(provider, ContainerProvider):
                resolver.providers[position] = _Container(environment)
            elif isinstance(provider, InstanceMetadataProvider):
                fetcher = provider._role_fetcher  # noqa: SLF001
                self._metadata = self._http(self._session, fetcher._timeout, fetcher._timeout)  # noqa: SLF001
                fetcher._session = self._metadata  # noqa: SLF001
            elif hasattr(provider, "_token_loader_cls"):
                provider._token_loader_cls = _TokenFile  # noqa: SLF001
            elif hasattr(provider, "_environ"):
                provider._environ = environment  # noqa: SLF001

    @property
    def _profile(self) -> str:
        return self._session.get_config_variable("profile") or "default"

    def _settings(self, profile: str) -> Mapping[str, str]:
        settings: Mapping[str, str] = self._session.full_config.get("profiles", {}).get(profile, {})
        return settings

    def _describe(self, method: str) -> tuple[str, str]:
        """The description of a provider, and a hint for when it fails."""
        settings = self._settings(self._profile)
        session = settings.get("sso_session")
        details = {
            "profile": self._profile,
            "role_arn": settings.get("role_arn"),
            "token_file": os.environ.get("AWS_WEB_IDENTITY_TOKEN_FILE") or settings.get("web_identity_token_file"),
            "sso": f"the SSO session {session!r}" if session else "the SSO login",
            "config_file": self._session.get_config_variable("config_file"),
            "credentials_file": self._session.get_config_variable("credentials_file"),
        }
        name, hint = _PROVIDERS.get(method, (method, _NO_PROVIDER_HINT))
        return name.format_map(details), hint.format_map(details)

    @contextmanager
    def _translate_failures(self, method: str, name: str, hint: str) -> Iterator[None]:
        """Raise a ``CredentialsError`` that names the provider for whatever it raises."""
        try:
            yield
        except AsyncpushError:
            raise  # from asyncpush's own providers, which name themselves
        except _FAILURES as error:
            if isinstance(error, bce.InvalidConfigError):
                hint = f"check profile {self._profile!r} in the AWS configuration"
            elif isinstance(error, (bce.SSOError, bce.TokenRetrievalError)) or method == "sso":
                hint = f"run `aws sso login --profile {self._sso_profile()}`"
            elif isinstance(error, (bce.HTTPClientError, bce.ConnectionError, ResponseParserError)):
                hint = "check the network (HTTPS_PROXY, NO_PROXY, AWS_CA_BUNDLE)"
            elif isinstance(error, bce.ClientError) and is_wrong_time(error):
                hint = CLOCK_HINT
            cause, reason = _as_botocore_error(error), _reason(error)
            if method == "sso" and cause is not error:
                reason = "its cached token can't be read"
            raise CredentialsError(f"no AWS credentials from {name}: {reason}", hint=hint) from cause

    def _sso_profile(self) -> str:
        """The profile to log in to, which may be the source profile of a role."""
        profile, seen = self._profile, set[str]()
        while profile not in seen and not self._settings(profile).get("sso_account_id"):
            seen.add(profile)
            profile = self._settings(profile).get("source_profile", profile)
        return profile

    def _prompt_for_code(self, prompt: str) -> str:
        """Prompt at the terminal, not at standard input, which may be an archive."""
        serial = prompt.removeprefix("Enter MFA code for ").rstrip(": ")
        request = f"profile {self._profile!r} needs an MFA code ({serial})"
        hint = "run with temporary credentials: see `aws configure export-credentials`"
        if not self._may_prompt:
            raise CredentialsError(f"{request} again, but asyncpush does not prompt for one during a run", hint=hint)
        try:
            terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY)
        except OSError as error:
            raise CredentialsError(f"{request}, but there is no terminal to prompt at", hint=hint) from error
        try:
            os.write(terminal, prompt.encode())
            end = time.monotonic() + _MFA_TIMEOUT
            while not select.select([terminal], [], [], 0.2)[0]:
                from_thread.check_cancelled()
                if time.monotonic() > end:
                    raise CredentialsError(f"{request}, but none was typed within {_MFA_TIMEOUT:g} seconds", hint=hint)
            return os.read(terminal, 100).decode(errors="replace").strip()
        finally:
            os.close(terminal)


def expired_message(provider: str, expires_at: float) -> str:
    """The message of expired credentials."""
    return (
        f"the AWS credentials from {provider} expired at {datetime.fromtimestamp(expires_at, UTC):%Y-%m-%dT%H:%M:%SZ}"
    )


#: The characters that a header and a signature may contain.
_VISIBLE = frozenset(string.ascii_letters + string.digits + string.punctuation)


def _checked(found: FoundCredentials) -> FoundCredentials:
    """Refuse keys that can't sign a request; the message does not contain them.

    Raises:
        CredentialsError: they have expired, or are malformed.
    """
    if found.expires_at is not None and found.expires_at <= time.time():
        raise CredentialsError(expired_message(found.provider, found.expires_at), hint=f"renew them: {found.hint}")
    for name, value in zip(("access key id", "secret access key", "session token"), found.keys[:3], strict=True):
        problem = _problem(value or "")
        if not value and name != "session token":
            problem = "is empty"
        if problem:
            raise CredentialsError(f"the {name} from {found.provider} {problem}", hint=found.hint)
    return found


def _problem(value: str) -> str | None:
    if value.endswith(("\n", "\r")):
        return "ends with a line break"
    if any(character.isspace() for character in value):
        return "contains white space"
    if not _VISIBLE.issuperset(value):
        return "contains an invalid character"
    if value[:1] in ("'", '"') and value[:1] == value[-1:]:
        return "is in quotation marks"
    return None


def _reason(error: Exception) -> str:
    """Why a provider failed, without any secret."""
    match error:
        case bce.ClientError():
            fault = error.response.get("Error", {})
            text = printable(str(fault.get("Message") or "")).rstrip(".")
            return f"{error.operation_name} failed: {fault.get('Code', 'Unknown')}{': ' if text else ''}{text}"
        case bce.BotoCoreError():
            return _botocore_reason(error)
        case ResponseParserError():
            return "the answer is not from AWS"
        case OSError():
            return f"{error.filename}: {describe_os_error(error)}" if error.filename else describe_os_error(error)
        case RuntimeError() if "expired" in str(error):
            return "the credentials that it starts from have expired"
        case ValueError() if str(error).startswith(_INVALID_TIME):
            return "its expiration is not a valid time"
        case ValueError() if str(error).startswith(_HARMLESS):
            return one_line(error)
    return "it returned no valid credentials"


def _botocore_reason(error: bce.BotoCoreError) -> str:
    match error:
        case bce.PartialCredentialsError():
            return f"{error.kwargs.get('cred_var')} is missing"
        case bce.ConfigParseError():
            return describe_parse_error(error)
        case bce.ParamValidationError() if "WebIdentityToken" in str(error):
            return "it holds no token"
        case bce.CredentialRetrievalError():
            # The body of the response may contain a secret.
            text = str(error.kwargs.get("error_msg", ""))
            status = re.search(r"Received non 200 response (\d+)", text)
            return f"it answered with HTTP status {status[1]}" if status else printable(text).rstrip(".")
        case bce.HTTPClientError() if type(error) is bce.HTTPClientError:
            return _failed_request(error.kwargs.get("error"))
    return one_line(error)


def _failed_request(error: BaseException | None) -> str:
    match error:
        case RedirectError():
            return one_line(error)
        case aiohttp.ClientResponseError():
            return "it does not speak HTTP"
        case aiohttp.InvalidURL():
            # Its text may contain a proxy's password.
            return "the proxy's address is invalid"
    return f"the request failed: {type(error).__name__}"


def _as_botocore_error(error: Exception) -> Exception:
    """An error of botocore's in any case: the AWS CLI derives its exit status from it."""
    if isinstance(error, (bce.BotoCoreError, bce.ClientError)):
        return error  # type: ignore[no-any-return] # botocore is untyped
    translation: Exception = bce.CredentialRetrievalError(provider="the AWS configuration", error_msg=_reason(error))
    translation.__cause__ = error
    return translation


class _Container(ContainerProvider):  # type: ignore[misc] # botocore is untyped
    """Asks the container credentials endpoint as botocore does, but limits the token file and the answer."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        seconds = ContainerMetadataFetcher.TIMEOUT_SECONDS
        http = CredentialHttp(verify=True, connect_timeout=seconds, read_timeout=seconds, use_proxies=False)
        fetcher = ContainerMetadataFetcher(http, lambda pause: run_on_event_loop(anyio.sleep, pause))
        super().__init__(dict(environment), fetcher)

    def _build_headers(self) -> dict[str, str] | None:
        path = self._environ.pop(self.ENV_VAR_AUTH_TOKEN_FILE, None)
        if path is not None:
            self._environ[self.ENV_VAR_AUTH_TOKEN] = read_small(Path(path), _MAX_TOKEN_SIZE).decode()
        headers: dict[str, str] | None = super()._build_headers()
        return headers
