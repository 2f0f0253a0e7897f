"""The providers of AWS credentials: botocore's own, run in a worker thread; a failure is one line that names the one.

aiobotocore's read files, ask for MFA codes and wait for the metadata service on the event loop, run a
credential_process on the terminal's standard input, and raise whatever goes wrong inside them.
"""

from __future__ import annotations

import concurrent.futures
import os
import re
import select
import string
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import botocore.exceptions as bce
import botocore.session
import msgspec
from anyio import from_thread
from botocore.compat import compat_shell_split
from botocore.config import Config
from botocore.credentials import (
    ContainerProvider,
    ProcessProvider,
    ProfileProviderBuilder,
    ReadOnlyCredentials,
    create_credential_resolver,
    parse,
)

from asyncpush.ecr.configuration import (
    configured,
    one_line,
    os_text,
    parse_text,
    printable,
    readable_configuration,
    variables,
)
from asyncpush.errors import AsyncpushError, CredentialsError
from asyncpush.files import read_small
from asyncpush.processes import CompletedProgram, run_small
from asyncpush.settings import AwsConfiguration

#: Bytes of the longest token in a file: a web identity's, or one for the container credentials endpoint.
_LONGEST_TOKEN = 1024 * 1024

#: Seconds that somebody may take to type an MFA code.
_MFA_TIMEOUT = 300.0

#: How providers ask STS and SSO: a dead endpoint or proxy is named within seconds, and no wait is without an end.
CLIENT_CONFIG = Config(connect_timeout=5, read_timeout=10, retries={"mode": "standard", "total_max_attempts": 3})

_NOWHERE = "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"

#: The providers by botocore's names: in words, and what to do when one fails.
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
    "iam-role": ("the instance metadata service", f"check the instance's role, or {_NOWHERE}"),
}

#: How dateutil refuses a text.
_NO_TIME = ("Unknown string format", "String does not contain a date")
#: How texts of botocore's begin that show nothing but an address.
_HARMLESS = ("Unsupported host", "Auth token value", "Invalid endpoint")

#: What botocore's providers, its parsers and the files and programs that they read are known to raise.
_FAILURES = (
    bce.BotoCoreError,
    bce.ClientError,
    ArithmeticError,
    AttributeError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True, slots=True)
class Found:
    """Credentials as a provider gave them.

    Attributes:
        keys: the access key, the secret key and the session token.
        end: when they end, in seconds since 1970; None if they do not, or nobody knows.
        provider: where they are from, in words.
        hint: what to do when they do not work.
    """

    keys: ReadOnlyCredentials = field(repr=False)
    end: float | None
    provider: str
    hint: str


class _TokenFile:
    """Reads the token of a web identity, as botocore would, but not for ever."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)

    def __call__(self) -> str:
        return read_small(self._path, _LONGEST_TOKEN).decode()


class Finder:
    """Finds credentials as every AWS tool does; all of it blocks, and belongs into a worker thread.

    Args:
        aws: what is set over the environment and the files.
        region: the region in which STS is asked.
    """

    def __init__(self, aws: AwsConfiguration, region: str | None) -> None:
        self._aws = aws
        self._region = region
        self._session: Any = None
        self._first = True

    def find(self, first: bool) -> Found:
        """Find them.

        Args:
            first: nothing was sent yet, so that somebody may be asked for an MFA code.

        Raises:
            CredentialsError: there are none, or their provider fails; it names the provider.
            ConfigurationError: the configuration can't be read.
        """
        self._first = first
        aws = self._aws
        if aws.access_key_id:
            keys = ReadOnlyCredentials(aws.access_key_id, aws.secret_access_key or "", None)
            return _checked(Found(keys, None, "the given access key", "check the access key"))
        if self._session is None:
            session = configured(botocore.session.Session(session_vars=variables()), aws, self._region)
            session.set_default_client_config(CLIENT_CONFIG)
            session.register("before-send", lambda **_: from_thread.check_cancelled())
            self._session = session
        with readable_configuration():
            # Anew each time: a provider of roles does not bear a second use.
            resolver = create_credential_resolver(self._session, region_name=self._region)
        self._adapt(resolver)
        for provider in resolver.providers:
            name, hint = self._describe(provider.METHOD)
            with self._named(provider.METHOD, name, hint):
                loaded = provider.load()
                if loaded is None:
                    continue
                # Read past the accessors: those would renew what is new.
                keys = getattr(loaded, "_frozen_credentials", None) or loaded.get_frozen_credentials()
                end: datetime | None = getattr(loaded, "_expiry_time", None)
                return _checked(Found(keys, end.timestamp() if end else None, name, hint))
        error = bce.NoCredentialsError()
        raise CredentialsError("there are no AWS credentials", hint=_NOWHERE) from error

    def _adapt(self, resolver: Any) -> None:
        """Put ours in where botocore's would read what is not theirs, wait for ever, or heed what is empty."""
        builder = ProfileProviders(self._session, self._region, self._aws.credential_timeout)
        roles = resolver.get_provider("assume-role")
        roles._profile_provider_builder = builder  # noqa: SLF001 - botocore takes these from nobody
        roles._prompter = self._ask_for_code  # noqa: SLF001
        environment = {name: value for name, value in os.environ.items() if value}
        for position, provider in enumerate(resolver.providers):
            if isinstance(provider, ProcessProvider):
                resolver.providers[position] = builder.process(self._profile)
            elif isinstance(provider, ContainerProvider):
                resolver.providers[position] = _Container(environment)
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
        """A provider in words, and what to do when it fails."""
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
        name, hint = _PROVIDERS.get(method, (method, _NOWHERE))
        return name.format_map(details), hint.format_map(details)

    @contextmanager
    def _named(self, method: str, name: str, hint: str) -> Iterator[None]:
        """Raise what a provider fails of, with its name."""
        try:
            yield
        except AsyncpushError:
            raise  # of ours, which has named itself
        except _FAILURES as error:
            if isinstance(error, bce.InvalidConfigError):
                hint = f"check profile {self._profile!r} in the AWS configuration"
            elif isinstance(error, (bce.SSOError, bce.TokenRetrievalError)) or method == "sso":
                hint = f"run `aws sso login --profile {self._logged_in()}`"
            elif isinstance(error, (bce.HTTPClientError, bce.ConnectionError)):
                hint = "check the network (HTTPS_PROXY, NO_PROXY, AWS_CA_BUNDLE)"
            known, reason = _known(error), _reason(error)
            if method == "sso" and known is not error:
                reason = "its cached token can't be read"
            raise CredentialsError(f"no AWS credentials from {name}: {reason}", hint=hint) from known

    def _logged_in(self) -> str:
        """The profile that somebody must log in to: a role's source may be the one."""
        profile, seen = self._profile, set[str]()
        while profile not in seen and not self._settings(profile).get("sso_account_id"):
            seen.add(profile)
            profile = self._settings(profile).get("source_profile", profile)
        return profile

    def _ask_for_code(self, prompt: str) -> str:
        """Ask somebody at the terminal: never standard input, which may be an archive."""
        serial = prompt.removeprefix("Enter MFA code for ").rstrip(": ")
        wanted = f"an MFA code ({serial}) is wanted for profile {self._profile!r}"
        hint = "run with temporary credentials: see `aws configure export-credentials`"
        if not self._first:
            raise CredentialsError(f"{wanted} again, which is not asked for in the midst of a run", hint=hint)
        try:
            terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY)
        except OSError as error:
            raise CredentialsError(f"{wanted}, and there is no terminal to ask for it", hint=hint) from error
        try:
            os.write(terminal, prompt.encode())
            end = time.monotonic() + _MFA_TIMEOUT
            while not select.select([terminal], [], [], 0.2)[0]:
                from_thread.check_cancelled()
                if time.monotonic() > end:
                    raise CredentialsError(f"{wanted}, and none was typed for {_MFA_TIMEOUT:g} seconds", hint=hint)
            return os.read(terminal, 100).decode(errors="replace").strip()
        finally:
            os.close(terminal)


def expired_text(provider: str, end: float) -> str:
    """That the credentials of a provider have ended."""
    return f"the AWS credentials from {provider} expired at {datetime.fromtimestamp(end, UTC):%Y-%m-%dT%H:%M:%SZ}"


#: What a header and a signature bear: of ASCII what can be seen.
_VISIBLE = frozenset(string.ascii_letters + string.digits + string.punctuation)


def _checked(found: Found) -> Found:
    """Refuse keys that no request can be signed with; they are never shown.

    Raises:
        CredentialsError: they have ended, or hold what no key does.
    """
    if found.end is not None and found.end <= time.time():
        raise CredentialsError(expired_text(found.provider, found.end), hint=f"renew them: {found.hint}")
    for name, value in zip(("access key id", "secret access key", "session token"), found.keys[:3], strict=True):
        problem = _problem(value or "")
        if not value and name != "session token":
            problem = "is empty"
        if problem:
            raise CredentialsError(f"the {name} from {found.provider} {problem}", hint=found.hint)
    return found


def _problem(value: str) -> str | None:
    if value.endswith(("\n", "\r")):
        return "ends with a line end"
    if any(character.isspace() for character in value):
        return "has a blank in it"
    if not _VISIBLE.issuperset(value):
        return "has a character in it that no key has"
    if value[:1] in ("'", '"') and value[:1] == value[-1:]:
        return "has quotation marks around it"
    return None


def _reason(error: Exception) -> str:
    """What went wrong inside a provider, in words that hold no secret."""
    match error:
        case bce.ClientError():
            fault = error.response.get("Error", {})
            text = printable(str(fault.get("Message") or "")).rstrip(".")
            return f"{error.operation_name} failed: {fault.get('Code', 'Unknown')}{': ' if text else ''}{text}"
        case bce.BotoCoreError():
            return _botocore_reason(error)
        case OSError():
            return f"{error.filename}: {os_text(error)}" if error.filename else os_text(error)
        case RuntimeError() if "expired" in str(error):
            return "what it starts from has expired"
        case ValueError() if str(error).startswith(_NO_TIME):
            return "its expiration is not a time"
        case ValueError() if str(error).startswith(_HARMLESS):
            return one_line(error)
    return "what it returned are not credentials"


def _botocore_reason(error: bce.BotoCoreError) -> str:
    match error:
        case bce.PartialCredentialsError():
            return f"{error.kwargs.get('cred_var')} is missing"
        case bce.ConfigParseError():
            return parse_text(error)
        case bce.ParamValidationError() if "WebIdentityToken" in str(error):
            return "it holds no token"
        case bce.CredentialRetrievalError():
            # The body of a refusal is not ours to show.
            text = str(error.kwargs.get("error_msg", ""))
            status = re.search(r"Received non 200 response (\d+)", text)
            return f"it answered with HTTP status {status[1]}" if status else printable(text).rstrip(".")
        case bce.HTTPClientError() if type(error) is bce.HTTPClientError:
            # What urllib3 can't parse may be a proxy's password.
            inner = type(error.kwargs.get("error")).__name__
            return "the proxy is not an address" if inner == "LocationParseError" else f"it can't be asked: {inner}"
    return one_line(error)


def _known(error: Exception) -> Exception:
    """An error of botocore's in any case, by which `aws` tells its exit statuses."""
    if isinstance(error, (bce.BotoCoreError, bce.ClientError)):
        return error  # type: ignore[no-any-return] # botocore is untyped
    known: Exception = bce.CredentialRetrievalError(provider="the AWS configuration", error_msg=_reason(error))
    known.__cause__ = error
    return known


class ProfileProviders(ProfileProviderBuilder):  # type: ignore[misc] # botocore is untyped
    """Makes the providers of a profile as botocore does, but for its process.

    Args:
        session: botocore's, with the configuration.
        region: where STS is asked.
        timeout: seconds that the process may take.
    """

    def __init__(self, session: Any, region: str | None, timeout: float) -> None:
        super().__init__(session, cache={}, region_name=region)
        self._timeout = timeout

    def process(self, profile: str) -> ProcessProvider:
        """The provider that runs a profile's process."""
        return _Process(profile, lambda: self._session.full_config, self._timeout)

    # What botocore calls it.
    _create_process_provider = process


class _Container(ContainerProvider):  # type: ignore[misc] # botocore is untyped
    """Asks the container credentials endpoint, as botocore does, with a token that is read within bounds."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        super().__init__(dict(environment))

    def _build_headers(self) -> dict[str, str] | None:
        path = self._environ.pop(self.ENV_VAR_AUTH_TOKEN_FILE, None)
        if path is not None:
            self._environ[self.ENV_VAR_AUTH_TOKEN] = read_small(Path(path), _LONGEST_TOKEN).decode()
        headers: dict[str, str] | None = super()._build_headers()
        return headers


class _Answer(msgspec.Struct):
    """What a process prints ("Process credential provider" in the AWS SDKs and Tools Reference Guide)."""

    Version: int
    AccessKeyId: str
    SecretAccessKey: str
    SessionToken: str | None = None
    Expiration: str | None = None


class _Process(ProcessProvider):  # type: ignore[misc] # botocore is untyped
    """Runs a profile's credential_process, from a worker thread of the event loop's."""

    def __init__(self, profile: str, load_config: Callable[[], Any], timeout: float) -> None:
        super().__init__(profile, load_config)
        self._profile = profile
        self._timeout = timeout

    def _retrieve_credentials_using(self, credential_process: str) -> dict[str, Any]:
        try:
            words = compat_shell_split(credential_process)
        except ValueError as error:
            raise self._failed(f"its command can't be split into words: {error}") from error
        if not words:
            raise self._failed("its command is empty")
        try:
            done = from_thread.run(self._run, words)
        except concurrent.futures.CancelledError:
            from_thread.check_cancelled()  # as the caller's own cancellation
            raise
        if done.is_too_long:
            raise self._failed("it printed far more than credentials have")
        if done.status != 0:
            ending = f"exit status {done.status}" if done.status > 0 else f"signal {-done.status}"
            said = printable(done.errors.decode(errors="replace"))
            raise self._failed(f"it ended with {ending}{': ' if said else ''}{said}")
        return self._read(done.output)

    async def _run(self, words: list[str]) -> CompletedProgram:
        try:
            with anyio.fail_after(self._timeout):
                return await run_small(words)
        except TimeoutError as error:
            raise self._failed(f"it has not ended for {self._timeout:g} seconds") from error
        except (OSError, ValueError) as error:
            # Its name alone: the other words may be secrets.
            raise self._failed(f"{words[0]} can't be run: {os_text(error)}") from error

    def _read(self, output: bytes) -> dict[str, Any]:
        if not output.strip():
            raise self._failed("it printed nothing")
        try:
            answer = msgspec.json.decode(output, type=_Answer)
            end: datetime | None = parse(answer.Expiration) if answer.Expiration else None
        except msgspec.ValidationError as error:
            # It tells which members and types are wrong, and no values.
            raise self._failed(f"what it printed is not what AWS documents: {error}") from error
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise self._failed("what it printed is not JSON") from None
        except (OverflowError, ValueError) as error:
            raise self._failed("its Expiration is not a time") from error
        if answer.Version != 1:
            raise self._failed(f"it printed Version {answer.Version}, where 1 is the only one")
        if end and end.tzinfo is None:
            end = end.replace(tzinfo=UTC)
        return {
            "access_key": answer.AccessKeyId,
            "secret_key": answer.SecretAccessKey,
            "token": answer.SessionToken,
            "expiry_time": end.isoformat() if end else None,
        }

    def _failed(self, reason: str) -> CredentialsError:
        error = CredentialsError(
            f"no AWS credentials from the credential_process of profile {self._profile!r}: {reason}",
            hint="run that command by hand",
        )
        # As botocore would have it, by which `aws` tells its exit statuses.
        error.__cause__ = bce.CredentialRetrievalError(provider=self.METHOD, error_msg=reason)
        return error
