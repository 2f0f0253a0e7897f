"""Botocore's data: read quickly, and with additions to ECR's service model that are newer than the pinned botocore.

botocore merges ``SERVICE/VERSION/service-2.sdk-extras.json`` of any of its search paths into the model that it ships.
The additions are from botocore 1.44.8, for the operations that ``asyncpush ecr`` has.
"""

from __future__ import annotations

import gzip
import os
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
from botocore.exceptions import DataNotFoundError
from botocore.loaders import JSONFileLoader, Loader

#: The services whose clients asyncpush opens with this data, and their names in ``endpoints.json``.
_SERVICES = ("ecr", "ecr-public", "s3", "sts")
_ENDPOINTS = ("api.ecr", "api.ecr-public", "s3", "sts")

_OPENERS: dict[str, Any] = {".json": open, ".json.gz": gzip.open}


@cache
def data_loader(folders: str | None = None) -> Any:
    """Botocore's data loader, with these additions and those in *folders* (``AWS_DATA_PATH``); all sessions share it.

    The user's own additions in ``~/.aws/models`` come first.
    """
    paths = [os.path.expanduser(os.path.expandvars(folder)) for folder in (folders or "").split(os.pathsep) if folder]  # noqa: PTH111 - as botocore does
    loader = _DataLoader(paths, _FileReader())
    loader.search_paths.append(str(Path(__file__).parent))
    return loader


class _DataLoader(Loader):  # type: ignore[misc] # botocore is untyped
    """botocore's loader, which does not look into the folders of all 400 services before it loads one."""

    def list_available_services(self, type_name: str) -> list[str]:
        """Those of ``_SERVICES`` that have data of this type."""
        return [service for service in _SERVICES if self._has(service, type_name)]

    def _has(self, service: str, type_name: str) -> bool:
        try:
            self.list_api_versions(service, type_name)
        except DataNotFoundError:
            return False
        return True


class _FileReader(JSONFileLoader):  # type: ignore[misc] # botocore is untyped
    """Reads JSON in a tenth of the time that botocore's reader takes, and of all services' endpoints only ECR's."""

    def load_file(self, file_path: str) -> Any:
        """The content of a file, which is named without its suffix; None if there is no such file."""
        for suffix, opener in _OPENERS.items():
            if not os.path.isfile(file_path + suffix):  # noqa: PTH113 - a path of botocore's
                continue
            with opener(file_path + suffix, "rb") as file:
                data = file.read()
            try:
                return _endpoints(data) if os.path.basename(file_path) == "endpoints" else msgspec.json.decode(data)  # noqa: PTH119
            except msgspec.DecodeError:
                break
        return super().load_file(file_path)  # raises botocore's error for a malformed file


def _endpoints(data: bytes) -> dict[str, Any]:
    """``endpoints.json`` with no other services than asyncpush's: the others are a megabyte."""
    document = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    whole: dict[str, Any] = {name: msgspec.json.decode(raw) for name, raw in document.items() if name != "partitions"}
    whole["partitions"] = []
    for partition in msgspec.json.decode(document["partitions"], type=list[dict[str, msgspec.Raw]]):
        services = msgspec.json.decode(partition["services"], type=dict[str, msgspec.Raw])
        members = {name: msgspec.json.decode(raw) for name, raw in partition.items() if name != "services"}
        members["services"] = {name: msgspec.json.decode(services[name]) for name in _ENDPOINTS if name in services}
        whole["partitions"].append(members)
    return whole
