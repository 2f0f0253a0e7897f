"""``asyncpush ecr`` where it is version 2's alone, where it does better, and in a script written for ``aws``."""

from __future__ import annotations

import base64
import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from asyncpush.awscli.formats import OperationOutput, Query, render
from support.aws import REGION, judge
from support.aws_cases import CONFIG_BYTES, LAYER_BYTES, complete, manifest, upload
from support.commands import Ran, Server, cli_environment, run_here
from support.images import digest

UPLOAD = "00000000-0000-4000-8000-000000000000"
LAYER = f"sha256:{'a' * 64}"


@pytest.fixture(scope="module")
def app(server: Server) -> Server:
    """The emulator with repository ``command/app``, which holds one layer."""
    ecr = judge(server.url)
    ecr.create_repository(repositoryName="command/app")
    complete(ecr, "command/app", upload(ecr, "command/app", LAYER_BYTES), LAYER_BYTES)
    return server


def ecr(server: Server, words: str, **environment: str) -> Ran:
    return run_here("ecr", *shlex.split(words), **{**server.environment, **environment})


def test_the_yaml_skeleton_is_version_2s_to_the_letter() -> None:
    done = run_here("ecr", "complete-layer-upload", "--generate-cli-skeleton", "yaml-input")

    assert (done.status, done.out) == (0, (
        "registryId: ''  # The Amazon Web Services account ID associated with the registry to which to upload layers.\n"
        "repositoryName: '' # [REQUIRED] The name of the repository to associate with the image layer.\n"
        "uploadId: '' # [REQUIRED] The upload ID from a previous InitiateLayerUpload operation to associate with the "
        "image layer.\n"
        "layerDigests: # [REQUIRED] The sha256 digest of the image layer.\n"
        "- ''\n"
    ))  # fmt: skip


@pytest.mark.parametrize(
    "operation", ["create-repository", "describe-images", "put-image", "upload-layer-part", "batch-get-image"]
)
def test_a_yaml_skeleton_has_the_members_of_the_json_one(operation: str) -> None:
    from_yaml = yaml.safe_load(run_here("ecr", operation, "--generate-cli-skeleton", "yaml-input").out)
    from_json = json.loads(run_here("ecr", operation, "--generate-cli-skeleton").out)

    def members(value: object) -> object:
        if isinstance(value, dict):
            return {name: members(each) for name, each in value.items()}
        # A blob is null in JSON.
        return [members(value[0])] if isinstance(value, list) else type("" if value is None else value)

    assert members(from_yaml) == members(from_json)


def test_yaml_has_its_keys_sorted_and_its_digits_quoted(app: Server) -> None:
    words = f"--repository-name command/app --upload-id {UPLOAD} --layer-digests {LAYER} --output"
    made_up = f"complete-layer-upload {words} {{}} --generate-cli-skeleton output"

    assert ecr(app, made_up.format("yaml")).out == (
        "layerDigest: layerDigest\nregistryId: registryId\nrepositoryName: repositoryName\nuploadId: uploadId\n"
    )
    assert ecr(app, made_up.format("yaml-stream")).out == (
        "- layerDigest: layerDigest\n  registryId: registryId\n  repositoryName: repositoryName\n  uploadId: uploadId\n"
    )
    found = ecr(
        app, "describe-repositories --repository-names command/app --output yaml --query repositories[].registryId"
    )
    assert found.out == "- '000000000000'\n"


def test_yaml_is_quoted_as_version_2_quotes_it() -> None:
    """As ruamel.yaml 0.17, version 2's writer, does it."""
    members: dict[str, Any] = {
        "partSize": 10485760, "scanOnPush": False, "size": 1.5, "tags": ["on", "1.36", "12e4567", "007", "1:20", "v1"],
        "time": "2026-11-23T00:00:00.123000+00:00", "quote": "'it", "lines": "a\nb\n", "none": None, "empty": [],
        "url": "https://host/path?a=b&c=d",
    }  # fmt: skip

    text = render(OperationOutput(members, (members,)), "yaml", Query(None), "Operation")

    assert text == (
        'empty: []\nlines: "a\\nb\\n"\nnone: null\npartSize: 10485760\nquote: "\'it"\nscanOnPush: false\n'
        "size: 1.5\ntags:\n- on\n- '1.36'\n- '12e4567'\n- '007'\n- 1:20\n- v1\n"
        "time: '2026-11-23T00:00:00.123000+00:00'\nurl: https://host/path?a=b&c=d\n"
    )


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(codec="utf-8", exclude_categories=["C"]))
    | st.sampled_from(["on", "yes", "1:20", "1e3", "0x1f", "007", "2026-11-23", "12e4567", "a: b", "- a", ""]),
    lambda inner: st.lists(inner) | st.dictionaries(st.text("abcXYZ", min_size=1), inner),
))  # fmt: skip
def test_yaml_is_read_back_as_what_was_written(value: object) -> None:
    members = {"value": value}

    text = render(OperationOutput(members, (members,)), "yaml", Query(None), "Operation")

    # PyYAML's reader is one of YAML 1.1, in which these words are booleans and that number is one to the base of 60.
    if not any(word in text for word in ("on", "yes", "1:20")):
        assert yaml.safe_load(text) == members


def test_text_for_a_blob_is_base64_unless_it_is_said_to_be_raw(app: Server, tmp_path: Path) -> None:
    data = b"a part " * 200
    part = tmp_path / "part"
    part.write_bytes(data)
    (tmp_path / "part.b64").write_bytes(base64.b64encode(data))
    last = len(data) - 1
    for blob in (
        f"fileb://{part}",
        f"file://{tmp_path}/part.b64",
        base64.b64encode(data).decode(),
        f"file://{part} --cli-binary-format raw-in-base64-out",
    ):
        upload_id = json.loads(ecr(app, "initiate-layer-upload --repository-name command/app").out)["uploadId"]
        sent = ecr(app, f"upload-layer-part --repository-name command/app --upload-id {upload_id} "
                        f"--part-first-byte 0 --part-last-byte {last} --layer-part-blob {blob}")  # fmt: skip
        assert (sent.status, json.loads(sent.out)["lastByteReceived"]) == (0, last), sent.err
        done = ecr(app, f"complete-layer-upload --repository-name command/app --upload-id {upload_id} "
                        f"--layer-digests {digest(data)}")  # fmt: skip
        assert done.status == 0 or "LayerAlreadyExistsException" in done.err, done.err


def test_a_manifest_from_a_file_keeps_its_line_ends(app: Server, tmp_path: Path) -> None:
    ecr(app, "create-repository --repository-name command/lines")
    client = judge(app.url)
    for data in (LAYER_BYTES, CONFIG_BYTES):
        complete(client, "command/lines", upload(client, "command/lines", data), data)
    raw = manifest(LAYER_BYTES).replace("\n", "\r\n").encode()
    (tmp_path / "manifest.json").write_bytes(raw)

    put = ecr(app, f"put-image --repository-name command/lines --image-tag 1 "
                   f"--image-manifest file://{tmp_path}/manifest.json --query image.imageId.imageDigest")  # fmt: skip

    assert json.loads(put.out) == digest(raw), put.err


def test_what_is_no_base64_is_refused_before_anything_is_sent() -> None:
    done = run_here("ecr", *f"upload-layer-part --repository-name ab --upload-id {UPLOAD} --part-first-byte 0 "
                            "--part-last-byte 1 --layer-part-blob abc".split())  # fmt: skip

    assert (done.status, done.err) == (252, '\nInvalid base64: "abc"\n')


def test_yaml_and_json_are_inputs_and_not_both_at_once(app: Server, tmp_path: Path) -> None:
    document = tmp_path / "input.yaml"
    document.write_text(f"repositoryName: none/none\nlayerDigests:\n- {LAYER}\n")

    # The command line wins, member by member.
    found = ecr(app, f"batch-check-layer-availability --cli-input-yaml file://{document} --repository-name command/app")
    both = ecr(app, f"batch-check-layer-availability --cli-input-yaml file://{document} --cli-input-json {{}}")

    assert json.loads(found.out)["layers"][0]["layerDigest"] == LAYER
    assert (both.status, both.err) == (252, "\nOnly one --cli-input- parameter may be specified.\n")
    no_map = ecr(app, "put-image --cli-input-json []")
    assert no_map.err == (
        "\nError parsing parameter '--cli-input-json': Invalid type: expecting map, received <class 'list'>\n"
    )


@pytest.mark.parametrize("word", ["-", "file:///dev/stdin"])
def test_standard_input_is_an_input_also_from_a_pipe(app: Server, word: str) -> None:
    document = json.dumps({"repositoryName": "command/app", "layerDigests": [digest(LAYER_BYTES)]}).encode()

    done = app.run("ecr", "batch-check-layer-availability", "--cli-input-json", word, stdin=document)

    assert json.loads(done.out)["layers"][0]["layerAvailability"] == "AVAILABLE", done.err


def test_a_bare_digest_in_a_file_is_one_digest(app: Server, tmp_path: Path) -> None:
    file = tmp_path / "digests"
    file.write_text(f"{digest(LAYER_BYTES)}\n")
    check = (
        "batch-check-layer-availability --repository-name command/app --query layers[].layerAvailability --output text"
    )

    assert ecr(app, f"{check} --layer-digests file://{file}").out == "AVAILABLE\n"
    assert ecr(app, f"{check} --layer-digests {LAYER} file://{file}").out == "UNAVAILABLE\tAVAILABLE\n"
    file.write_text(json.dumps([digest(LAYER_BYTES)]))
    assert ecr(app, f"{check} --layer-digests fileb://{file}").out == "AVAILABLE\n"


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("complete-layer-upload --upload-id bad --layer-digests sha256:ab", ["--upload-id: 'bad' does not match"]),
        ("complete-layer-upload --registry-id 12 --upload-id bad --layer-digests x",
         ["--registry-id: '12'", "--upload-id", "--layer-digests ([0]): 'x'"]),
        (f"complete-layer-upload --upload-id {UPLOAD} --layer-digests {' '.join([LAYER] * 101)}",
         ["--layer-digests: 101 elements; the maximum is 100"]),
        (f"put-image --image-manifest {{}} --image-tag {'t' * 301}",
         ["--image-tag: 301 characters; the maximum is 300"]),
        ("describe-images --filter tagStatus=SOME",
         ["--filter (tagStatus): 'SOME' is not one of TAGGED, UNTAGGED, ANY"]),
        ("describe-images --max-results 1001", ["--max-results: 1001 is more than 1000"]),
    ],
)  # fmt: skip
def test_what_ecr_would_refuse_is_told_by_option_before_it_is_sent(words: str, named: list[str]) -> None:
    nowhere = {"AWS_ENDPOINT_URL_ECR": "http://127.0.0.1:1", "AWS_REGION": REGION}

    done = run_here("ecr", *shlex.split(words), "--repository-name", "command/app", **nowhere)

    assert done.status == 252
    assert all(each in done.err for each in named), done.err


def test_a_repository_name_that_only_the_newer_model_knows_is_sent(app: Server) -> None:
    assert "RepositoryNotFoundException" in ecr(app, "describe-images --repository-name a__b/c--d").err


def test_help_has_the_synopsis_and_every_option() -> None:
    for words in ("complete-layer-upload help", "complete-layer-upload --help"):
        done = run_here("ecr", *words.split())
        assert done.status == 0
        assert "--upload-id <value>\n" in done.out
        assert "[--registry-id <value>]\n" in done.out
        assert "[--cli-input-json | --cli-input-yaml]" in done.out
    assert "o batch-get-image\n" in run_here("ecr", "help").out
    assert "batch-get-image" not in run_here("ecr-public", "help").out


def test_a_log_for_debugging_holds_no_secret(app: Server) -> None:
    done = app.run("ecr", "describe-repositories", "--debug", AWS_SESSION_TOKEN="a-token-of-mine")

    assert "DescribeRepositories" in done.err
    assert "security-token" in done.err.lower()
    assert "a-token-of-mine" not in done.err


def test_ctrl_c_ends_with_130_and_a_line_end(app: Server) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "asyncpush", "ecr", "put-image", "--cli-input-json", "-"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=cli_environment(**app.environment),
    )  # fmt: skip
    assert process.stdin is not None
    process.stdin.write(" ")
    process.stdin.flush()
    # It reads the pipe once it has imported all that it needs.
    while "python" not in Path(f"/proc/{process.pid}/comm").read_text() or not reads_a_pipe(process.pid):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)

    assert (process.returncode, out, err) == (130, "\n", "")


def reads_a_pipe(pid: int) -> bool:
    return "pipe_read" in Path(f"/proc/{pid}/wchan").read_text()


_SCRIPT = r"""
set -euo pipefail
aws() { "$PYTHON" -m asyncpush "$@"; }

aws ecr create-repository --repository-name "$REPOSITORY" --tags Key=team,Value=base >/dev/null

push_blob() {  # FILE DIGEST
  state=$(aws ecr batch-check-layer-availability --repository-name "$REPOSITORY" --layer-digests "$2" \
          --query 'layers[0].layerAvailability' --output text)
  [ "$state" = UNAVAILABLE ] || return 0
  upload=$(aws ecr initiate-layer-upload --repository-name "$REPOSITORY" --query uploadId --output text)
  size=$(stat -c %s "$1") first=0 part=5242880
  while [ "$first" -lt "$size" ]; do
    tail -c +$((first + 1)) "$1" | head -c "$part" >"$WORK/part" || true
    last=$((first + $(stat -c %s "$WORK/part") - 1))
    got=$(aws --output text ecr upload-layer-part --repository-name "$REPOSITORY" --upload-id "$upload" \
      --part-first-byte "$first" --part-last-byte "$last" --layer-part-blob "fileb://$WORK/part" \
      --query lastByteReceived)
    [ "$got" = "$last" ]
    first=$((last + 1))
  done
  aws ecr complete-layer-upload --repository-name "$REPOSITORY" --upload-id "$upload" --layer-digests "$2" >/dev/null
}

tr '{},' '\n\n\n' <"$WORK/manifest.json" | grep -o 'sha256:[0-9a-f]*' | while read -r digest; do
  push_blob "$LAYOUT/blobs/sha256/${digest#sha256:}" "$digest"
done
aws ecr put-image --repository-name "$REPOSITORY" --image-tag 1.36 --image-manifest "file://$WORK/manifest.json" \
  --image-manifest-media-type application/vnd.oci.image.manifest.v1+json \
  --query image.imageId.imageDigest --output text
if aws ecr put-image --repository-name "$REPOSITORY" --image-tag 1.36 \
     --image-manifest-media-type application/vnd.oci.image.manifest.v1+json \
     --image-manifest "file://$WORK/manifest.json" 2>"$WORK/error"; then exit 1; else status=$?; fi
[ "$status" = 254 ]
grep -q '^An error occurred (ImageAlreadyExistsException) when calling the PutImage operation: ' "$WORK/error"
"""


def test_a_script_for_aws_pushes_a_real_image_unchanged(server: Server, real_images: Path, tmp_path: Path) -> None:
    layout = real_images / "busybox"
    index = json.loads((layout / "index.json").read_text())
    name = index["manifests"][0]["digest"].removeprefix("sha256:")
    raw = (layout / "blobs" / "sha256" / name).read_bytes()
    (tmp_path / "manifest.json").write_bytes(raw)

    done = subprocess.run(
        ["bash", "-c", _SCRIPT], capture_output=True, text=True, check=False, timeout=110,
        env=cli_environment(**server.environment, PYTHON=sys.executable, REPOSITORY="script/busybox",
                            LAYOUT=str(layout), WORK=str(tmp_path)),
    )  # fmt: skip

    assert (done.returncode, done.stdout) == (0, digest(raw) + "\n"), done.stderr
    stored = judge(server.url).batch_get_image(repositoryName="script/busybox", imageIds=[{"imageTag": "1.36"}])
    assert stored["images"][0]["imageManifest"].encode() == raw


@pytest.mark.parametrize(
    ("query", "printed"),
    [
        ("layers[0].layerDigest", f'"{digest(LAYER_BYTES)}"\n'),
        ("layers[0].layerSize", "800\n"),
        ("layers[0].layerSize == `800`", "true\n"),
        ("layers[0].nothing", "null\n"),
        ("join(' ', ['\u00e9', 'on', '1:20'])", '"\u00e9 on 1:20"\n'),
        ("layers[].layerSize", "- 800\n"),
    ],
)
def test_a_lone_scalar_in_yaml_is_written_as_json(app: Server, query: str, printed: str) -> None:
    """The aws CLI does so since YAML would end a lone scalar with ``...``."""
    check = f"batch-check-layer-availability --repository-name command/app --layer-digests {digest(LAYER_BYTES)}"
    done = ecr(app, f"{check} --output yaml --query {shlex.quote(query)}")
    assert (done.status, done.out) == (0, printed), done.err


def test_a_skeleton_takes_the_first_of_several_choices() -> None:
    """A skeleton is the same each time: of several choices it has the first."""
    for operation in ("describe-images", "create-repository"):
        first, *others = [run_here("ecr", operation, "--generate-cli-skeleton").out for _ in range(5)]
        assert set(others) == {first}
    skeleton = json.loads(run_here("ecr", "describe-images", "--generate-cli-skeleton").out)
    assert skeleton["filter"] == {"tagStatus": "TAGGED", "imageStatus": "ACTIVE"}


@pytest.mark.parametrize(
    "words",
    [
        ["batch-check-layer-availability", "--repository-name", "command/app", "--layer-digests", LAYER],
        ["describe-images", "--generate-cli-skeleton"],
        ["describe-images", "help"],
    ],
)
def test_a_result_that_a_closed_standard_output_takes_is_a_failure(app: Server, words: list[str]) -> None:
    command = [sys.executable, "-m", "asyncpush", "ecr", *words]
    environment = cli_environment(**app.environment)
    done = subprocess.run(
        ["/bin/sh", "-c", '"$@" >&-', "sh", *command], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 255
    assert "standard output is closed" in done.stderr
    assert "Traceback" not in done.stderr
