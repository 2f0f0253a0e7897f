"""Push container images into Amazon ECR, many layers at once, through ECR's own layer API.

async with asyncpush.connect("123456789012.dkr.ecr.eu-west-1.amazonaws.com") as registry:
    result = await asyncpush.push(registry, "oci:build/app:1.0", "team/app:1.0")
    print(result.digest)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # isort: off
    from asyncpush.api import (
        connect as connect,
        open_source as open_source,
        push as push,
        push_all as push_all,
        push_layers as push_layers,
    )
    from asyncpush.connection import Registry as Registry
    from asyncpush.ecr.rate_limit import OperationStatistics as OperationStatistics
    from asyncpush.errors import (
        AsyncpushError as AsyncpushError,
        ChoiceError as ChoiceError,
        ConfigurationError as ConfigurationError,
        ConnectionFailedError as ConnectionFailedError,
        CredentialsError as CredentialsError,
        CredentialsExpiredError as CredentialsExpiredError,
        CredentialsRefusedError as CredentialsRefusedError,
        DigestMismatchError as DigestMismatchError,
        EmptyLayerError as EmptyLayerError,
        FailuresError as FailuresError,
        InterruptedRunError as InterruptedRunError,
        InvalidLayerError as InvalidLayerError,
        InvalidLayerPartError as InvalidLayerPartError,
        InvalidReferenceError as InvalidReferenceError,
        JournalError as JournalError,
        JournalInUseError as JournalInUseError,
        LayersNotFoundError as LayersNotFoundError,
        ManifestError as ManifestError,
        PathNotFoundError as PathNotFoundError,
        PlanError as PlanError,
        Position as Position,
        RegistryError as RegistryError,
        RepositoryNotFoundError as RepositoryNotFoundError,
        ServiceError as ServiceError,
        SourceArchivedError as SourceArchivedError,
        SourceDeniedError as SourceDeniedError,
        SourceError as SourceError,
        SourceLimitedError as SourceLimitedError,
        SourceNotFoundError as SourceNotFoundError,
        SourceUnavailableError as SourceUnavailableError,
        TagImmutableError as TagImmutableError,
        UnforeseenError as UnforeseenError,
        UploadNotFoundError as UploadNotFoundError,
        UsageError as UsageError,
    )
    from asyncpush.events import (
        Emit as Emit,
        Event as Event,
        ImageDone as ImageDone,
        ImageFailed as ImageFailed,
        ImagePlanned as ImagePlanned,
        ImageStarted as ImageStarted,
        ImageVerified as ImageVerified,
        LayerDone as LayerDone,
        LayerFailed as LayerFailed,
        LayerStarted as LayerStarted,
        Limited as Limited,
        Listed as Listed,
        Notice as Notice,
        PartRead as PartRead,
        PartSent as PartSent,
        RequestDone as RequestDone,
        Retrying as Retrying,
        Unanswered as Unanswered,
    )
    from asyncpush.journal import (
        EarlierRun as EarlierRun,
        FinishedImage as FinishedImage,
        KnownImage as KnownImage,
        LeftUpload as LeftUpload,
        RunState as RunState,
        SqliteJournal as SqliteJournal,
        open_journal as open_journal,
    )
    from asyncpush.manifest import Manifest as Manifest
    from asyncpush.migrate.forecast import (
        Forecast as Forecast,
        LimitForecast as LimitForecast,
        PullForecast as PullForecast,
        RegistryForecast as RegistryForecast,
    )
    from asyncpush.migrate.ledger import Options as Options
    from asyncpush.migrate.plan.load import read_plan as read_plan
    from asyncpush.migrate.plan.model import (
        PlanEntry as PlanEntry,
        Goal as Goal,
        Plan as Plan,
        PlanTarget as PlanTarget,
    )
    from asyncpush.migrate.plan.tags import Alternative as Alternative, Patterns as Patterns, TagRules as TagRules
    from asyncpush.migrate.plan.wildcards import (
        RepositoryChoice as RepositoryChoice,
        RepositoryPattern as RepositoryPattern,
    )
    from asyncpush.migrate.plan.versions import (
        Comparator as Comparator,
        Version as Version,
        VersionRange as VersionRange,
    )
    from asyncpush.migrate.shard import Shard as Shard
    from asyncpush.timeline import (
        Interval as Interval,
        LayerTime as LayerTime,
        OperationTimes as OperationTimes,
        Timeline as Timeline,
    )
    from asyncpush.migrate.verify import verify_plan as verify_plan
    from asyncpush.migrate.report import (
        Copy as Copy,
        CopyResult as CopyResult,
        LeftOutTag as LeftOutTag,
        NothingTaken as NothingTaken,
        Report as Report,
    )
    from asyncpush.migrate.run import migrate_plan as migrate_plan
    from asyncpush.model import (
        Descriptor as Descriptor,
        Digest as Digest,
        LeftOut as LeftOut,
        OpenUpload as OpenUpload,
        Platform as Platform,
        TagMutability as TagMutability,
        Upload as Upload,
    )
    from asyncpush.protocols import (
        Blob as Blob,
        BlobReader as BlobReader,
        BlobStream as BlobStream,
        FoundReferrers as FoundReferrers,
        Image as Image,
        ImageNode as ImageNode,
        IndexNode as IndexNode,
        Journal as Journal,
        LocalBlob as LocalBlob,
        ManifestBuilder as ManifestBuilder,
        Part as Part,
        PartEncoder as PartEncoder,
        RandomAccess as RandomAccess,
        ReferrerSource as ReferrerSource,
        RemoteBlob as RemoteBlob,
        Repository as Repository,
        SeekableReader as SeekableReader,
        StoredImage as StoredImage,
        UnreadReferrer as UnreadReferrer,
    )
    from asyncpush.reference import (
        Destination as Destination,
        RegistryName as RegistryName,
        parse_destination as parse_destination,
    )
    from asyncpush.results import (
        ImageFailure as ImageFailure,
        ImageResult as ImageResult,
        LayerFailure as LayerFailure,
        LayerResult as LayerResult,
        ReferrerResult as ReferrerResult,
        Result as Result,
        Results as Results,
    )
    from asyncpush.settings import (
        AwsConfiguration as AwsConfiguration,
        Bandwidth as Bandwidth,
        Credentials as Credentials,
        RepositorySettings as RepositorySettings,
        RetryPolicy as RetryPolicy,
        Settings as Settings,
        SourceRegistry as SourceRegistry,
    )
    from asyncpush.sources import Source as Source, UnreadImage as UnreadImage
    from asyncpush.traffic import Traffic as Traffic
    from asyncpush.verify import (
        Problem as Problem,
        SettingDifference as SettingDifference,
        SettingsVerification as SettingsVerification,
        Verification as Verification,
        VerificationFailure as VerificationFailure,
        VerificationTarget as VerificationTarget,
        VerificationWatcher as VerificationWatcher,
        verify_image as verify_image,
    )

# At run time: the same names, by the module that is imported when a name is first used.
_NAMES = {
    "api": "connect open_source push push_all push_layers",
    "connection": "Registry",
    "ecr.rate_limit": "OperationStatistics",
    "errors": (
        "AsyncpushError ChoiceError ConfigurationError ConnectionFailedError CredentialsError "
        "CredentialsExpiredError CredentialsRefusedError DigestMismatchError EmptyLayerError FailuresError "
        "InvalidLayerError InvalidLayerPartError InvalidReferenceError JournalError JournalInUseError "
        "LayersNotFoundError ManifestError InterruptedRunError PathNotFoundError Position SourceArchivedError "
        "PlanError RegistryError RepositoryNotFoundError ServiceError SourceDeniedError SourceError "
        "SourceLimitedError SourceNotFoundError SourceUnavailableError TagImmutableError UnforeseenError "
        "UploadNotFoundError UsageError"
    ),
    "events": (
        "Emit Event ImageDone ImageFailed ImagePlanned ImageStarted ImageVerified LayerDone LayerFailed LayerStarted "
        "Limited Listed Notice PartRead PartSent RequestDone Retrying Unanswered"
    ),
    "journal": "EarlierRun FinishedImage KnownImage LeftUpload RunState SqliteJournal open_journal",
    "manifest": "Manifest",
    "migrate.forecast": "Forecast LimitForecast PullForecast RegistryForecast",
    "migrate.ledger": "Options",
    "migrate.plan.load": "read_plan",
    "migrate.plan.model": "Goal Plan PlanEntry PlanTarget",
    "migrate.plan.wildcards": "RepositoryChoice RepositoryPattern",
    "migrate.plan.tags": "Alternative Patterns TagRules",
    "migrate.plan.versions": "Comparator Version VersionRange",
    "migrate.shard": "Shard",
    "timeline": "Interval LayerTime OperationTimes Timeline",
    "migrate.report": "Copy CopyResult LeftOutTag NothingTaken Report",
    "migrate.run": "migrate_plan",
    "migrate.verify": "verify_plan",
    "model": "Descriptor Digest LeftOut OpenUpload Platform TagMutability Upload",
    "protocols": (
        "Blob BlobReader BlobStream FoundReferrers Image ImageNode IndexNode Journal LocalBlob "
        "ManifestBuilder Part PartEncoder RandomAccess ReferrerSource RemoteBlob Repository SeekableReader "
        "StoredImage UnreadReferrer"
    ),
    "reference": "Destination RegistryName parse_destination",
    "results": "ImageFailure ImageResult LayerFailure LayerResult ReferrerResult Result Results",
    "settings": "AwsConfiguration Bandwidth Credentials RepositorySettings RetryPolicy Settings SourceRegistry",
    "sources": "Source UnreadImage",
    "traffic": "Traffic",
    "verify": (
        "Problem SettingDifference SettingsVerification Verification VerificationFailure VerificationTarget "
        "VerificationWatcher verify_image"
    ),
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names.split()}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> object:
    # botocore takes half a second to import: `asyncpush --help` must not pay for it.
    if name in _HOMES:
        return getattr(import_module(f"asyncpush.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'asyncpush' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
