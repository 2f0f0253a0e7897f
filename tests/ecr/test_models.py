"""Botocore's data, as asyncpush reads it: what clients need of it is what botocore itself reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import botocore.loaders
import pytest
from botocore.exceptions import DataNotFoundError, EndpointVariantError
from botocore.regions import EndpointResolver

import asyncpush.ecr.models
from asyncpush.ecr.models import data_loader

SERVICES = ("ecr", "ecr-public", "sts")
PREFIXES = ("api.ecr", "api.ecr-public", "sts")


@pytest.fixture
def stock() -> Any:
    """botocore's own loader, with our additions."""
    loader = botocore.loaders.Loader()
    loader.search_paths.append(str(Path(asyncpush.ecr.models.__file__).parent))
    return loader


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize("kind", ["service-2", "endpoint-rule-set-1", "paginators-1"])
def test_a_model_is_the_one_that_botocore_reads(stock: Any, service: str, kind: str) -> None:
    ours = data_loader().load_service_model(service, kind)

    assert json.dumps(ours) == json.dumps(stock.load_service_model(service, kind))


@pytest.mark.parametrize("name", ["partitions", "sdk-default-configuration", "_retry"])
def test_other_data_is_what_botocore_reads(stock: Any, name: str) -> None:
    assert json.dumps(data_loader().load_data(name)) == json.dumps(stock.load_data(name))


def test_the_endpoints_of_ecr_are_those_that_botocore_knows(stock: Any) -> None:
    ours, theirs = (EndpointResolver(loader.load_data("endpoints")) for loader in (data_loader(), stock))
    partitions = theirs.get_available_partitions()

    assert ours.get_available_partitions() == partitions
    for prefix in PREFIXES:
        for partition in partitions:
            regions = theirs.get_available_endpoints(prefix, partition, allow_non_regional=True)
            assert ours.get_available_endpoints(prefix, partition, allow_non_regional=True) == regions
            for region in (*regions, "eu-south-9"):
                for more in ({}, {"use_fips_endpoint": True}, {"use_dualstack_endpoint": True}):
                    known = endpoint(theirs, prefix, region, partition, **more)
                    assert endpoint(ours, prefix, region, partition, **more) == known


def endpoint(resolver: EndpointResolver, *where: str, **more: bool) -> Any:
    try:
        return resolver.construct_endpoint(*where, **more)
    except EndpointVariantError as error:
        return str(error)


def test_a_folder_of_the_users_comes_first(tmp_path: Path) -> None:
    (tmp_path / "_retry.json").write_text('{"mine": 1}')

    assert data_loader(str(tmp_path)).load_data("_retry") == {"mine": 1}
    assert data_loader().load_data("_retry") != {"mine": 1}


def test_a_malformed_file_is_the_error_that_botocore_raises(tmp_path: Path) -> None:
    (tmp_path / "_retry.json").write_text("{")

    with pytest.raises(json.JSONDecodeError):
        data_loader(str(tmp_path)).load_data("_retry")


def test_data_that_is_not_there_is_an_error() -> None:
    with pytest.raises(DataNotFoundError):
        data_loader().load_data("nothing")
