"""ECR's and ECR Public's JSON API: a target and a body in, an answer or an error in AWS's shape out."""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from asyncpush.emulator import requests
from asyncpush.emulator.documents import Document
from asyncpush.emulator.errors import AwsError, invalid_parameter, server_error, unknown_operation
from asyncpush.emulator.images_api import ImagesApi
from asyncpush.emulator.layers_api import LayersApi
from asyncpush.emulator.part_body import read_part_body
from asyncpush.emulator.registry import Registry
from asyncpush.emulator.repositories_api import RepositoriesApi
from asyncpush.emulator.store import Store

_LOG = logging.getLogger(__name__)

#: Bodies of more bytes than this are parsed in a thread (only manifests are so long, and parts).
_INLINE = 64 * 1024

R = TypeVar("R", bound=requests.Request)

Operation = Callable[[bytearray], Awaitable[Document]]


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back: the operation's name for the log, the HTTP status and the JSON body."""

    operation: str
    status: int
    body: bytes


@dataclass(frozen=True, slots=True)
class _Service:
    """What sets ECR and ECR Public apart: the target's prefix, and the shapes of names."""

    prefix: str
    registry_id: re.Pattern[str]
    repository_name: re.Pattern[str]

    def check(self, request: requests.Request) -> None:
        """Judge the names that both services have, by the shapes of this one.

        Raises:
            AwsError: InvalidParameterException.
        """
        names = [("registryId", request.registry_id, self.registry_id)]
        if isinstance(request, requests.RepositoryRequest):
            names.append(("repositoryName", request.repository_name, self.repository_name))
        for name, value, pattern in names:
            if value is not None and not pattern.fullmatch(value):
                raise invalid_parameter(name, f"must satisfy regular expression '{pattern.pattern}'")


_PRIVATE = _Service("AmazonEC2ContainerRegistry_V20150921", re.compile(r"[0-9]{12}"), re.compile(r".{2,256}"))
_PUBLIC = _Service(
    "SpencerFrontendService",
    re.compile(r"(?=.{2,50}$)(?:[0-9]{12}|[a-z][a-z0-9]+(?:[._-][a-z0-9]+)*)"),
    re.compile(r"(?=.{2,205}$)(?:[a-z0-9]+(?:[._-][a-z0-9]+)*/)*[a-z0-9]+(?:[._-][a-z0-9]+)*"),
)


class JsonApi:
    """Both services on one store."""

    def __init__(self, store: Store, registry: Registry) -> None:
        self._store = store
        self._operations = {
            _PRIVATE.prefix: self._table(_PRIVATE, registry),
            _PUBLIC.prefix: self._table(_PUBLIC, registry),
        }

    async def answer(self, target: str, body: bytearray) -> Answer:
        """Carry out one request.

        Args:
            target: the ``X-Amz-Target`` header, empty if there was none.
            body: the request's body.

        Returns:
            An answer in any case: refusals, a full disk and defects are answers, too.
        """
        name = operation_name(target)
        try:
            return Answer(name, 200, msgspec.json.encode(await self._operation(target)(body)))
        except AwsError as error:
            return refusal(name, error)
        except OSError as error:
            return refusal(name, server_error(f"The emulator can't use its data directory: {error}"))
        except Exception:  # noqa: BLE001 - a defect in one operation must not end the server
            _LOG.exception("%s failed", name)
            return refusal(name, AwsError("InternalFailure", "The emulator has a defect; its log has more", status=500))

    def _operation(self, target: str) -> Operation:
        prefix, _, name = target.rpartition(".")
        table = self._operations.get(prefix)
        if table is None:
            raise unknown_operation(target, "is of no service that this emulator has (see the header X-Amz-Target)")
        operation = table.get(name)
        if operation is None:
            raise unknown_operation(name, "is not one that this emulator has")
        return operation

    def _table(self, service: _Service, registry: Registry) -> dict[str, Operation]:
        layers, images = LayersApi(self._store, registry), ImagesApi(self._store, registry)
        repositories = RepositoriesApi(self._store, registry, public=service is _PUBLIC)
        shared = {
            "BatchCheckLayerAvailability": self._json(service, requests.BatchCheckLayerAvailability, layers.check),
            "InitiateLayerUpload": self._json(service, requests.InitiateLayerUpload, layers.initiate),
            "UploadLayerPart": self._part(service, layers),
            "CompleteLayerUpload": self._json(service, requests.CompleteLayerUpload, layers.complete),
            "PutImage": self._json(service, requests.PutImage, images.put),
            "DescribeImages": self._json(service, requests.DescribeImages, images.describe),
            "BatchDeleteImage": self._json(service, requests.BatchDeleteImage, images.delete),
            "CreateRepository": self._json(service, requests.CreateRepository, repositories.create),
            "DescribeRepositories": self._json(service, requests.DescribeRepositories, repositories.describe),
            "DeleteRepository": self._json(service, requests.DeleteRepository, repositories.delete),
            "GetAuthorizationToken": self._json(service, requests.GetAuthorizationToken, repositories.authorize),
        }
        if service is _PUBLIC:
            return shared
        return shared | {
            "BatchGetImage": self._json(service, requests.BatchGetImage, images.get),
            "ListImages": self._json(service, requests.ListImages, images.list_ids),
        }

    def _json(self, service: _Service, kind: type[R], run: Callable[[R], Awaitable[Document]]) -> Operation:
        async def operation(body: bytearray) -> Document:
            long = len(body) > _INLINE
            request = await self._store.in_thread(requests.decode, body, kind) if long else requests.decode(body, kind)
            service.check(request)
            return await run(request)

        return operation

    def _part(self, service: _Service, layers: LayersApi) -> Operation:
        async def operation(body: bytearray) -> Document:
            part = await self._store.in_thread(read_part_body, body)
            body.clear()  # 28 MB that nothing needs while the part waits for its turn and the disk
            service.check(part.request)
            return await layers.upload_part(part)

        return operation


def operation_name(target: str) -> str:
    """The operation that a target names, for the log."""
    return target.rpartition(".")[2] or "(none)"


def refusal(operation: str, error: AwsError) -> Answer:
    """An error in AWS's shape (JSON 1.1: ``__type``, ``message`` and the shape's members)."""
    document = {"__type": error.code, "message": error.message, **error.members}
    return Answer(operation, error.status, msgspec.json.encode(document))
