"""Laws of manifests: their bytes are kept, their claims are checked, and what ECR refuses is refused first."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncpush.errors import ManifestError
from asyncpush.manifest import (
    ACCEPTED_TYPES,
    DOCKER_CONFIG,
    DOCKER_LIST,
    DOCKER_MANIFEST,
    INDEX_TYPES,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_MANIFEST,
    build_manifest,
    image_types,
    is_foreign,
    parse_manifest,
    require_layers,
)
from asyncpush.model import Descriptor, Digest, Platform
from asyncpush.settings import MAX_MANIFEST_SIZE

LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
ONE, TWO, THREE = (Digest.of(bytes([number])) for number in range(3))


def pointer(digest=ONE, media_type=LAYER, size=5, **more):
    return {"mediaType": media_type, "digest": str(digest), "size": size, **more}


def raw(document):
    return json.dumps({"schemaVersion": 2, **document}).encode()


def image(**changes):
    layers = [pointer(TWO), pointer(THREE, size=7)]
    return {"mediaType": OCI_MANIFEST, "config": pointer(ONE, OCI_CONFIG), "layers": layers, **changes}


def index(**changes):
    return {"mediaType": OCI_INDEX, "manifests": [pointer(ONE, OCI_MANIFEST), pointer(TWO, OCI_INDEX)], **changes}


def test_a_manifest_keeps_its_bytes_and_says_what_it_points_at():
    data = b"  " + raw(image()) + b"\n"

    manifest = parse_manifest(data)

    assert manifest.raw == data
    assert manifest.descriptor == Descriptor(OCI_MANIFEST, Digest.of(data), len(data))
    assert [blob.digest for blob in manifest.blobs()] == [ONE, TWO, THREE]
    assert [blob.size for blob in manifest.blobs()] == [5, 5, 7]
    assert manifest.media_type not in INDEX_TYPES


def test_an_index_lists_its_children_in_order_with_platforms():
    """An index lists what it points at, in its order, with platforms and annotations."""
    words = {"platform": {"os": "linux", "architecture": "arm", "variant": "v7", "os.version": "x"}}
    children = [pointer(ONE, OCI_MANIFEST, **words), pointer(TWO, DOCKER_MANIFEST, annotations={"a": "b"})]

    parsed = parse_manifest(raw(index(manifests=children)))

    assert parsed.media_type in INDEX_TYPES
    assert [child.digest for child in parsed.children] == [ONE, TWO]
    assert parsed.children[0].platform == Platform("linux", "arm", "v7")
    assert (parsed.children[1].platform, parsed.children[1].annotation("a")) == (None, "b")
    assert list(parsed.blobs()) == []


@pytest.mark.parametrize("media_type", ACCEPTED_TYPES)
def test_the_media_type_is_the_manifests_own_or_what_points_at_it(media_type):
    document = index() if media_type in (OCI_INDEX, DOCKER_LIST) else image()
    del document["mediaType"]

    assert parse_manifest(raw(document), media_type=media_type).media_type == media_type
    assert parse_manifest(raw({**document, "mediaType": media_type})).media_type == media_type


def test_without_any_media_type_the_content_tells():
    assert parse_manifest(raw(image(mediaType=None))).media_type == OCI_MANIFEST
    assert parse_manifest(raw(index(mediaType=None))).media_type == OCI_INDEX


def test_a_manifest_may_refer_to_another_one():
    assert parse_manifest(raw(image(subject=pointer(THREE, OCI_MANIFEST)))).subject == THREE
    assert parse_manifest(raw(index(subject=pointer(THREE, OCI_MANIFEST)))).subject == THREE


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "malformed"),
        (b"\xff", "malformed"),
        (b"[]", "malformed"),
        (b'{"x":' + b"[" * 200_000, "malformed"),
        (raw(image()) + b"x", "malformed"),
        (raw(image(layers={})), "malformed"),
        (raw(image(layers=[pointer(size="5")])), "malformed"),
        (raw(image(config=None)), "lacks its config or layers"),
        (raw({key: value for key, value in image().items() if key != "layers"}), "lacks its config or layers"),
        (raw(image(manifests=[])), "lacks its config or layers"),
        (raw(image(layers=[pointer("sha512:" + "0" * 128)])), "not a sha256 digest"),
        (raw(image(layers=[pointer("sha256:" + "A" * 64)])), "not a sha256 digest"),
        (raw(image(layers=[pointer(size=-1)])), "has size -1"),
        (raw(image(mediaType="application/json")), "of type 'application/json'; ECR takes"),
        (raw(image(mediaType=OCI_INDEX)), "is an index, but has layers"),
        (raw(index(layers=[])), "is an index, but has layers"),
        (raw({key: value for key, value in index().items() if key != "manifests"}), "but has no manifests"),
        (raw(index(manifests=[pointer(media_type=LAYER)])), "which is not a manifest; .*image-manifest=true"),
        (json.dumps({**image(), "schemaVersion": 1}).encode(), "schema version 1"),
        (b" " * (MAX_MANIFEST_SIZE + 1), "ECR takes manifests of up to 4194304"),
    ],
)
def test_a_manifest_that_ecr_would_refuse_is_refused_in_one_line(data, message):
    with pytest.raises(ManifestError, match=message) as error:
        parse_manifest(data, name="manifest of app")

    assert str(error.value).startswith("manifest of app")
    assert "\n" not in str(error.value)


def test_null_is_nothing_as_go_writes_it():
    words = {"urls": None, "platform": {"os": None, "architecture": None}, "annotations": {"a": None, "b": "c"}}
    read = parse_manifest(raw(image(layers=[pointer(**words, data="e30=", unknown=1)], subject=None)))

    assert (read.layers[0].urls, read.layers[0].platform, read.layers[0].annotations) == ((), None, (("b", "c"),))
    for members in (None, []):
        assert parse_manifest(raw(image(layers=members))).layers == ()
        assert parse_manifest(raw(index(manifests=members))).children == ()


def test_an_image_must_have_layers_and_an_artifact_may_do_without():
    for members in (None, []):
        with pytest.raises(ManifestError, match="app has no layers; ECR refuses images without layers"):
            require_layers(parse_manifest(raw(image(layers=members))), "app")
        empty = pointer(media_type="application/vnd.oci.empty.v1+json")
        require_layers(parse_manifest(raw(image(layers=members, config=empty))), "app")


def test_a_manifest_must_be_what_points_at_it_says():
    with pytest.raises(ManifestError, match=r"says it is .*oci.*, but its descriptor says .*docker"):
        parse_manifest(raw(image()), media_type=DOCKER_MANIFEST)


def test_a_manifest_of_the_greatest_size_is_read():
    data = raw(image())

    assert parse_manifest(data + b" " * (MAX_MANIFEST_SIZE - len(data))).layers


@pytest.mark.parametrize("compression", ["gzip", "none", "zstd"])
def test_a_built_manifest_points_at_just_what_it_was_built_of(compression):
    types = image_types(compression)
    config = Descriptor(types.config, ONE, 3)
    layers = [Descriptor(types.layer, TWO, 5), Descriptor(types.layer, TWO, 5), Descriptor(types.layer, THREE, 7)]

    manifest = build_manifest(config, layers, compression)

    assert (manifest.media_type, manifest.config, manifest.layers) == (types.manifest, config, tuple(layers))
    assert manifest == build_manifest(config, layers, compression)
    assert parse_manifest(manifest.raw) == manifest


def test_zstd_layers_make_an_oci_manifest_and_others_docker_ones():
    found = {compression: image_types(compression).manifest for compression in ("gzip", "none", "zstd")}

    assert found == {"gzip": DOCKER_MANIFEST, "none": DOCKER_MANIFEST, "zstd": OCI_MANIFEST}
    assert image_types("gzip").config == DOCKER_CONFIG


@pytest.mark.parametrize(
    ("media_type", "urls", "foreign"),
    [
        ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", ("https://example.com",), True),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+zstd", ("https://example.com",), True),
        ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", (), False),
        (LAYER, ("https://example.com",), False),
    ],
)
def test_a_foreign_layer_is_marked_so_and_has_urls(media_type, urls, foreign):
    assert is_foreign(Descriptor(media_type, ONE, 1, urls)) == foreign


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(str(ONE)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["mediaType", "digest", "size", "os", "config"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(changes=st.dictionaries(st.sampled_from(["config", "layers", "manifests", "subject", "mediaType"]), JSON))
def test_any_document_is_a_manifest_or_a_manifest_error(changes):
    try:
        manifest = parse_manifest(raw(image(**changes)))
    except ManifestError as error:
        assert_one_line(error)
    else:
        assert manifest.media_type in ACCEPTED_TYPES


def assert_one_line(error):
    assert "\n" not in str(error)


@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=200))
def test_any_bytes_are_a_manifest_or_a_manifest_error(data):
    with pytest.raises(ManifestError):
        parse_manifest(data)
