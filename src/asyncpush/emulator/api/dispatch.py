"""The JSON API of ECR and ECR Public: routes a request to its operation and registry, and answers in AWS's shape."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import msgspec
from aiohttp import web

from asyncpush import open_files
from asyncpush.emulator.api import requests
from asyncpush.emulator.api.images import ImageListsApi, ImagesApi
from asyncpush.emulator.api.layers import Downloads, LayersApi
from asyncpush.emulator.api.part_body import read_part_body
from asyncpush.emulator.api.registries import RegistriesApi, TokenApi
from asyncpush.emulator.api.repositories import PoliciesApi, RepositoriesApi
from asyncpush.emulator.api.requests import Document
from asyncpush.emulator.api.validation import load_input_rules
from asyncpush.emulator.auth.authentication import Principal
from asyncpush.emulator.auth.tokens import Tokens
from asyncpush.emulator.errors import AwsError, not_implemented, registry_not_found, server_error, unknown_operation
from asyncpush.emulator.limits import Limits, Quirks
from asyncpush.emulator.registry import (
    ACCOUNT,
    DEFAULT_ACCOUNT,
    PRIVATE,
    PUBLIC,
    RegistryId,
    RequestTarget,
    ServiceName,
)
from asyncpush.emulator.store.state import Store

_LOG = logging.getLogger(__name__)

#: Bodies of more bytes than this are parsed in a thread: manifests and parts.
_INLINE = 64 * 1024

R = TypeVar("R", bound=requests.OperationInput)

#: Answers a request's body, given its principal and the check of its members.
Operation = Callable[[bytearray, Principal, requests.Check], Awaitable[Document]]


@dataclass(frozen=True, slots=True)
class ApiResponse:
    """An answer: the operation's name for the log, the HTTP status and the JSON body."""

    operation: str
    status: int
    body: bytes

    def to_http(self) -> web.Response:
        """The answer over HTTP (JSON 1.1)."""
        headers = {"Content-Type": "application/x-amz-json-1.1", "x-amzn-RequestId": str(uuid.uuid4())}
        return web.Response(body=self.body, status=self.status, headers=headers)


@dataclass(frozen=True, slots=True)
class _Service:
    """ECR or ECR Public, and the prefix of its targets."""

    name: ServiceName
    prefix: str


_PRIVATE = _Service(PRIVATE, "AmazonEC2ContainerRegistry_V20150921")
_PUBLIC = _Service(PUBLIC, "SpencerFrontendService")


class JsonApi:
    """Both services on one store. Creating one blocks for some milliseconds, to load the services' models.

    Args:
        store: repositories, uploads and settings.
        limits: quotas, part sizes, quirks and the endpoint's address.
        downloads: makes the addresses of layers.
        addressing: finds the registry of a request.
        tokens: makes and checks the tokens of ``/v2/``.
    """

    def __init__(
        self, store: Store, limits: Limits, downloads: Downloads, addressing: Addressing, tokens: Tokens
    ) -> None:
        self._store = store
        self._addressing = addressing
        self._layers = LayersApi(store, limits, downloads)
        self._images = ImagesApi(store, limits)
        self._lists = ImageListsApi(store)
        self._repositories = RepositoriesApi(store, limits)
        self._policies = PoliciesApi(store)
        self._registries = RegistriesApi(store, limits)
        self._tokens = TokenApi(tokens, limits)
        self._inputs = {service.prefix: load_input_rules(service.name) for service in (_PRIVATE, _PUBLIC)}
        self._operations = {
            _PRIVATE.prefix: self._shared(_PRIVATE) | self._private_only(),
            _PUBLIC.prefix: self._shared(_PUBLIC) | self._public_only(),
        }

    async def answer(self, target: str, body: bytearray, principal: Principal) -> ApiResponse:
        """Carry out one request.

        Args:
            target: the ``X-Amz-Target`` header, empty if there was none.
            body: the request's body.
            principal: who sends it.

        Returns:
            An answer in any case: refusals, a full disk and defects give one, too.
        """
        name = operation_name(target)
        try:
            return ApiResponse(name, 200, msgspec.json.encode(await self._run(target, body, principal)))
        except AwsError as error:
            return refusal(name, error)
        except OSError as error:
            return refusal(
                name, server_error(f"The emulator can't use its data directory: {open_files.shortage(error) or error}")
            )
        except Exception:  # noqa: BLE001 - a defect in one operation must not end the server
            _LOG.exception("%s failed", name)
            return refusal(name, AwsError("InternalFailure", "The emulator has a defect; its log has more", status=500))

    async def _run(self, target: str, body: bytearray, principal: Principal) -> Document:
        prefix, _, name = target.rpartition(".")
        table = self._operations.get(prefix)
        if table is None:
            raise unknown_operation(target, "is of no service that this emulator has (see the header X-Amz-Target)")
        operation = table.get(name)
        if operation is None:
            if name in self._inputs[prefix].operations:
                raise not_implemented(name)
            raise unknown_operation(name, "is not one that this service has")
        return await operation(body, principal, partial(self._inputs[prefix].check, name))

    def _shared(self, service: _Service) -> dict[str, Operation]:
        layers, images, repositories, policies = self._layers, self._images, self._repositories, self._policies
        of, settings = partial(self._json, service), requests
        return {
            "BatchCheckLayerAvailability": of(requests.BatchCheckLayerAvailability, layers.check),
            "InitiateLayerUpload": of(requests.InitiateLayerUpload, layers.initiate),
            "UploadLayerPart": self._part(service),
            "CompleteLayerUpload": of(requests.CompleteLayerUpload, layers.complete),
            "PutImage": of(requests.PutImage, images.put),
            "DescribeImages": of(requests.DescribeImages, self._lists.describe),
            "BatchDeleteImage": of(requests.BatchDeleteImage, images.delete),
            "CreateRepository": of(settings.CreateRepository, repositories.create),
            "DescribeRepositories": of(settings.DescribeRepositories, repositories.describe),
            "DeleteRepository": of(settings.DeleteRepository, repositories.delete),
            "GetAuthorizationToken": of(settings.GetAuthorizationToken, self._tokens.authorize),
            "SetRepositoryPolicy": of(settings.SetRepositoryPolicy, policies.set_policy),
            "GetRepositoryPolicy": of(requests.RepositoryRequest, policies.get_policy),
            "DeleteRepositoryPolicy": of(requests.RepositoryRequest, policies.delete_policy),
            "ListTagsForResource": of(settings.ListTagsForResource, policies.list_tags),
            "TagResource": of(settings.TagResource, policies.tag),
            "UntagResource": of(settings.UntagResource, policies.untag),
        }

    def _private_only(self) -> dict[str, Operation]:
        images, policies, registries = self._lists, self._policies, self._registries
        of, settings = partial(self._json, _PRIVATE), requests
        return {
            "BatchGetImage": of(requests.BatchGetImage, self._images.get),
            "UpdateImageStorageClass": of(requests.UpdateImageStorageClass, self._images.update_storage_class),
            "GetDownloadUrlForLayer": of(requests.GetDownloadUrlForLayer, self._layers.download_url),
            "ListImages": of(requests.ListImages, images.list_ids),
            "ListImageReferrers": of(requests.ListImageReferrers, images.referrers),
            "PutImageTagMutability": of(settings.PutImageTagMutability, policies.put_mutability),
            "PutImageScanningConfiguration": of(settings.PutImageScanningConfiguration, policies.put_scanning),
            "PutLifecyclePolicy": of(settings.PutLifecyclePolicy, policies.put_lifecycle_policy),
            "GetLifecyclePolicy": of(requests.RepositoryRequest, policies.get_lifecycle_policy),
            "DeleteLifecyclePolicy": of(requests.RepositoryRequest, policies.delete_lifecycle_policy),
            "DescribeRegistry": of(requests.OperationInput, registries.describe),
            "GetAccountSetting": of(settings.GetAccountSetting, registries.setting),
            "PutAccountSetting": of(settings.PutAccountSetting, registries.put_setting),
            "CreateRepositoryCreationTemplate": of(
                settings.CreateRepositoryCreationTemplate, registries.create_template
            ),
            "UpdateRepositoryCreationTemplate": of(
                settings.UpdateRepositoryCreationTemplate, registries.update_template
            ),
            "DescribeRepositoryCreationTemplates": of(
                settings.DescribeRepositoryCreationTemplates, registries.describe_templates
            ),
            "DeleteRepositoryCreationTemplate": of(
                settings.DeleteRepositoryCreationTemplate, registries.delete_template
            ),
        }

    def _public_only(self) -> dict[str, Operation]:
        of, settings = partial(self._json, _PUBLIC), requests
        return {
            "DescribeImageTags": of(requests.DescribeImageTags, self._lists.describe_tags),
            "DescribeRegistries": of(settings.DescribeRegistries, self._registries.describe_all),
            "GetRegistryCatalogData": of(requests.OperationInput, self._registries.catalog_data),
            "PutRegistryCatalogData": of(settings.PutRegistryCatalogData, self._registries.put_catalog_data),
            "GetRepositoryCatalogData": of(requests.RepositoryRequest, self._policies.get_catalog_data),
            "PutRepositoryCatalogData": of(settings.PutRepositoryCatalogData, self._policies.put_catalog_data),
        }

    def _json(
        self, service: _Service, kind: type[R], run: Callable[[R, RequestTarget], Awaitable[Document]]
    ) -> Operation:
        async def operation(body: bytearray, principal: Principal, check: requests.Check) -> Document:
            read = partial(requests.decode, body, kind, check)
            request = await self._store.in_thread(read) if len(body) > _INLINE else read()
            return await run(request, self._addressing.of(service.name, principal, request.registry_id))

        return operation

    def _part(self, service: _Service) -> Operation:
        async def operation(body: bytearray, principal: Principal, check: requests.Check) -> Document:
            part = await self._store.in_thread(read_part_body, body, check)
            target = self._addressing.of(service.name, principal, part.request.registry_id)
            return await self._layers.upload_part(part, target)

        return operation


def operation_name(target: str) -> str:
    """The operation that a target names, for the log."""
    return target.rpartition(".")[2] or "(none)"


def refusal(operation: str, error: AwsError) -> ApiResponse:
    """An error in AWS's shape (JSON 1.1: ``__type``, ``message`` and the shape's members)."""
    document = {"__type": error.code, "message": error.message, **error.members}
    return ApiResponse(operation, error.status, msgspec.json.encode(document))


_PUBLIC_REGIONS = ("us-east-1", "us-west-2")


class Addressing:
    """Finds the registry of each request.

    Args:
        store: an account with a repository in it exists.
        quirks: how public aliases and regions are read.
        accounts: accounts that exist without a repository.
    """

    def __init__(self, store: Store, quirks: Quirks, accounts: Collection[str]) -> None:
        self._store = store
        self._quirks = quirks
        self._accounts = frozenset({DEFAULT_ACCOUNT, *accounts})

    def of(self, service: ServiceName, principal: Principal, registry_id: str | None) -> RequestTarget:
        """The registry that a request names.

        Raises:
            AwsError: RegistryNotFoundException, UnsupportedCommandException; for ECR Public only.
        """
        named = registry_id or principal.account
        if service == PRIVATE:
            return RequestTarget(RegistryId(PRIVATE, named, principal.region), named)
        if self._quirks.public_regions == "documented" and principal.region not in _PUBLIC_REGIONS:
            raise AwsError(
                "UnsupportedCommandException",
                f"ECR Public is in {' and '.join(_PUBLIC_REGIONS)}, not {principal.region}",
            )
        return RequestTarget(RegistryId(PUBLIC, self._account(named, principal), ""), named)

    def _account(self, named: str, principal: Principal) -> str:
        if ACCOUNT.fullmatch(named):
            if named == principal.account or named in self._accounts or self._has_repositories(named):
                return named
        elif self._quirks.unknown_alias == "caller":
            return principal.account
        raise registry_not_found(named)

    def _has_repositories(self, account: str) -> bool:
        return any(held for registry, held in self._store.repositories.items() if registry.account == account)
