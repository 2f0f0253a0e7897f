"""Commands that the aws CLI and asyncpush must answer alike, and what must exist for each."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.aws import judge_in
from support.images import CONFIG, LAYER, MANIFEST, digest

#: Exit statuses of version 1 that mean the same as one of version 2.
VERSION_1 = {0: {0}, 252: {2, 255}, 253: {255}, 254: {255}, 255: {255}}

LAYER_BYTES, NEW_BYTES, OTHER_BYTES = b"a layer " * 100, b"a new layer " * 100, b"another layer " * 100
CONFIG_BYTES = b'{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}'
UNKNOWN = "00000000-0000-4000-8000-000000000000"
NO_DIGEST = f"sha256:{'0' * 64}"


def manifest(*layers: bytes, note: str = "") -> str:
    """An image manifest over these layers."""

    def descriptor(media_type: str, data: bytes) -> dict[str, object]:
        return {"mediaType": media_type, "digest": digest(data), "size": len(data)}

    return json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": descriptor(CONFIG, CONFIG_BYTES),
            "layers": [descriptor(LAYER, data) for data in layers],
            "annotations": {"note": note},
        },
        indent=2,
    )


@dataclass(frozen=True)
class Case:
    """One command.

    Attributes:
        words: it, without its program, as a list where one is empty; ``{name}`` is a value of a ``Side``.
        status: version 2's exit status.
        differs: why standard output or the message is not version 1's; such a case is compared by its status only.
        environment: variables that it is run with.
        stdin: what is on standard input.
    """

    words: str | list[str]
    status: int = 0
    differs: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    stdin: str | None = None


APP = "--repository-name cases/app"
COMPLETE = f"ecr complete-layer-upload {APP}"
NEW, OLD = digest(NEW_BYTES), digest(LAYER_BYTES)
FROM_JSON = "ecr batch-check-layer-availability --cli-input-json"
CHECK = f"ecr batch-check-layer-availability {APP} --layer-digests"
GET = f"ecr batch-get-image {APP}"
IMAGES = f"ecr describe-images {APP}"
PUT = f"ecr put-image {APP}"
PART = f"ecr upload-layer-part {APP}"

CASES = (
    # Answers, in every form that both versions have.
    Case(f"{CHECK} {OLD}"),
    Case(f"{CHECK} {OLD} {NO_DIGEST}"),
    Case(f"{CHECK} file://{{files}}/list.json"),
    Case(f"{CHECK} {OLD} --output text"),
    Case(f"{CHECK} {OLD} {NO_DIGEST} --output text"),
    Case(f"{CHECK} {OLD} --output table"),
    Case(f"{CHECK} {OLD} {NO_DIGEST} --output table --query layers[].[layerDigest,layerSize]"),
    Case(f"{CHECK} {OLD} --query layers[0].layerAvailability"),
    Case(f"{CHECK} {OLD} --query layers[0].layerAvailability --output text"),
    Case(f"{CHECK} {OLD} --query layers[].[layerDigest,layerAvailability] --output text"),
    Case(f"{CHECK} {OLD} --query nothing"),
    Case(f"{CHECK} {OLD} --query nothing --output text"),
    Case(f"{CHECK} {OLD} --query nothing --output table"),
    Case(f"{CHECK} {OLD} --query failures --output table"),
    Case(f"{CHECK} {OLD}", environment={"AWS_DEFAULT_OUTPUT": "text"}),
    Case(f"--output text {CHECK} {OLD}"),
    Case(f"--region {{region}} --no-paginate {CHECK} {OLD}", environment={"AWS_DEFAULT_REGION": "", "AWS_REGION": ""}),
    Case(f"{CHECK} {OLD} --endpoint-url {{url}}", environment={"AWS_ENDPOINT_URL_ECR": ""}),
    Case(f"{CHECK} {OLD} --no-sign-request --cli-read-timeout 5 --cli-connect-timeout 0", 254),
    Case(f"{CHECK} {OLD} --layer-digests {NO_DIGEST}"),
    Case(f"ecr batch-check-layer-availability {APP} --layer-digest {OLD}"),
    Case(f"ecr batch-check-layer-availability {APP} --layer-digests={OLD}"),
    # Images and repositories, in pages or not.
    Case(f"{GET} --image-ids imageTag=1 imageTag=2"),
    Case(f"{GET} --image-ids imageTag=1 --output text --query images[].imageId"),
    Case(f"{GET} --image-ids imageTag=missing,imageDigest={NO_DIGEST}"),
    Case(f"{GET} --image-ids imageTag=1 --query images[0].imageManifest --output text"),
    Case(f'{GET} --image-ids [{{{{"imageTag":"1"}}}}] --query images[].imageId --output table'),
    Case(f"{GET} --image-ids imageTag=1 --accepted-media-types {MANIFEST} --query length(images)"),
    Case(f"{IMAGES}"),
    Case(f"{IMAGES} --output text"),
    Case(f"{IMAGES} --output table"),
    Case(f"{IMAGES} --query imageDetails[?imageStatus=='ACTIVE'].imageTags --output text"),
    Case(f"{IMAGES} --filter imageStatus=ARCHIVED"),
    Case(f"{IMAGES} --filter tagStatus=TAGGED,imageStatus=ANY --query imageDetails[].imageStatus"),
    Case(f"{IMAGES} --filter imageStatus=NEVER", 252, "checked before sending"),
    Case(f"{IMAGES} --query imageDetails[].{{{{a:imageDigest,b:imageTags,c:imagePushedAt,d:imageSizeInBytes}}}}"),
    Case(f"{IMAGES} --query imageDetails[].{{{{a:imageDigest,b:imageTags,c:imagePushedAt}}}} --output text"),
    Case(f"{IMAGES} --query imageDetails[].{{{{a:imageDigest,b:imageTags}}}} --output table"),
    Case(f"{IMAGES} --image-ids imageTag=1 --query imageDetails[].imageTags"),
    Case(f"{IMAGES} --image-ids imageTag=1 --query imageDetails[].imageTags --output table"),
    Case(f"{IMAGES} --filter tagStatus=UNTAGGED"),
    Case(f"{IMAGES} --max-items 1 --query NextToken!=null"),
    Case(f"{IMAGES} --max-items 1 --query imageDetails[].imageDigest"),
    Case(f"{IMAGES} --page-size 1 --query imageDetails[].imageDigest"),
    Case(f"{IMAGES} --page-size 1 --query imageDetails[].imageDigest --output text"),
    Case(f"{IMAGES} --no-paginate --query length(imageDetails)"),
    Case(f"{IMAGES} --max-results 1 --query length(imageDetails)"),
    Case(f"{IMAGES} --no-paginate --max-items 1", 252),
    Case("ecr describe-repositories --repository-names cases/app"),
    Case("ecr describe-repositories --repository-names cases/app --output table"),
    Case("ecr describe-repositories --repository-names cases/app --query repositories[].createdAt --output text"),
    Case("ecr describe-repositories --page-size 1 --query repositories[].repositoryName --output text"),
    Case("ecr describe-repositories --query repositories[].[repositoryName,imageTagMutability] --output table"),
    Case(f"ecr get-download-url-for-layer {APP} --layer-digest {OLD} --query layerDigest"),
    # What changes something.
    Case("ecr create-repository --repository-name cases/new --tags Key=team,Value=a Key=cost,Value=b"),
    Case("ecr create-repository --repository-name cases/mutable --image-tag-mutability IMMUTABLE "
         "--image-scanning-configuration scanOnPush=true --encryption-configuration encryptionType=AES256"),
    Case("ecr create-repository --repository-name cases/new", 254),
    Case("ecr initiate-layer-upload --repository-name cases/new"),
    Case("ecr initiate-layer-upload --repository-name cases/new --output table"),
    Case("ecr initiate-layer-upload --repository-name cases/new --output text --query [partSize]"),
    Case(f"{PART} --upload-id {{parts}} --part-first-byte 0 --part-last-byte 1199 "
         "--layer-part-blob fileb://{files}/part"),
    Case(f"{COMPLETE} --upload-id {{parts}} --layer-digests {NEW} --output table"),
    Case(f"{COMPLETE} --upload-id {{whole}} --layer-digests {digest(OTHER_BYTES)} --registry-id 000000000000"),
    Case(f"{PUT} --image-tag 3 --image-manifest file://{{files}}/manifest.json"),
    # Abbreviations, in which asyncpush's own options take no part.
    Case("ecr upload-layer-part --repo cases/app --upl {abbreviated} --part-f 0 --part-l 1199 "
         "--layer fileb://{files}/part"),
    Case(f"{IMAGES} --max-items 0 --query imageDetails[].imageDigest"),
    Case(f"{IMAGES} --max-i 1 --query imageDetails[].imageDigest"),
    Case(f"{IMAGES} --max 1", 252, "the usage names asyncpush"),
    Case(f"{PART} --part 1", 252, "the usage names asyncpush"),
    Case(f"{CHECK} {OLD} --unord", 252, "the usage names asyncpush"),
    Case(f"{CHECK} {OLD} --bat x", 252, "the usage names asyncpush"),
    # Where the input comes from.
    Case(f"{COMPLETE} --cli-input-json file://{{files}}/complete.json --query layerDigest", 254),
    Case(f"{FROM_JSON} file://{{files}}/check.json --layer-digests {NO_DIGEST}"),
    Case(f"{FROM_JSON} file://{{files}}/check.json"),
    Case(f"{FROM_JSON} {{{{}}}}", 252),
    Case(FROM_JSON + ' {{"bogus":1}}', 252),
    Case(f"{FROM_JSON} []", 252, "version 1 crashes"),
    Case(f"{FROM_JSON} {{{{", 252, "version 1 adds the decoder's message"),
    Case(f"{FROM_JSON} file://{{files}}/none", 252, "worded otherwise"),
    Case(f"{FROM_JSON} file:///", 252),
    Case(f"{FROM_JSON} {'[' * 5000}", 252, "version 1 crashes"),
    Case("ecr complete-layer-upload --generate-cli-skeleton"),
    Case("ecr complete-layer-upload --generate-cli-skeleton input --output text"),
    Case("ecr put-image --generate-cli-skeleton"),
    Case("ecr describe-images --generate-cli-skeleton", 0, "version 1 takes any of several choices"),
    Case(f"{IMAGES} --generate-cli-skeleton output", 0, "the two models tell findings apart by other members"),
    Case("ecr initiate-layer-upload --generate-cli-skeleton output", 252, "the usage names asyncpush"),
    Case("ecr initiate-layer-upload --repository-name ab --generate-cli-skeleton output"),
    Case(f"{COMPLETE} --upload-id {UNKNOWN} --layer-digests {NEW} --generate-cli-skeleton output"),
    Case(f"{COMPLETE} --upload-id {UNKNOWN} --layer-digests {NEW} --generate-cli-skeleton output --output text"),
    Case(f"{COMPLETE} --upload-id {UNKNOWN} --layer-digests {NEW} --generate-cli-skeleton output --query layerDigest"),
    Case(f"{COMPLETE} --upload-id {UNKNOWN} --layer-digests --generate-cli-skeleton output", 252),
    # Errors that ECR answers.
    Case(f"ecr complete-layer-upload --repository-name none/none --upload-id {UNKNOWN} --layer-digests {NEW}", 254),
    Case(f"{COMPLETE} --upload-id {UNKNOWN} --layer-digests {NEW}", 254),
    Case(f"{COMPLETE} --upload-id {{fresh}} --layer-digests {NEW}", 254),
    Case(f"{COMPLETE} --upload-id {{wrong}} --layer-digests {NO_DIGEST}", 254),
    Case(f"{COMPLETE} --upload-id {{small}} --layer-digests {NEW}", 254),
    Case(f"{COMPLETE} --upload-id {{twice}} --layer-digests {OLD}", 254),
    Case(f"{COMPLETE} --upload-id bad --layer-digests {NEW}", 252, "checked before sending"),
    Case(f"{COMPLETE} --upload-id bad --layer-digests {NEW} --no-cli-validate", 254, "only asyncpush has this option"),
    Case(f"{PART} --upload-id {{fresh}} --part-first-byte 7 --part-last-byte 1206 "
         "--layer-part-blob fileb://{files}/part", 254),
    Case(f"{PART} --upload-id {{fresh}} --part-first-byte 0 --part-last-byte 7 "
         "--layer-part-blob fileb://{files}/part", 254),
    Case(f"{PART} --upload-id {UNKNOWN} --part-first-byte 0 --part-last-byte 1199 "
         "--layer-part-blob fileb://{files}/part", 254),
    Case(f"{IMAGES} --image-ids imageTag=missing", 254),
    Case("ecr describe-repositories --repository-names none/none", 254),
    Case(f"{PUT} --image-tag 1 --image-manifest file://{{files}}/manifest.old.json", 254),
    Case(f"{PUT} --image-manifest file://{{files}}/manifest.json --image-digest {NO_DIGEST}", 254),
    Case(f"{PUT} --image-manifest file://{{files}}/manifest.missing.json", 254),
    Case("ecr put-image --repository-name cases/locked --image-tag 1 "
         "--image-manifest file://{files}/manifest.json", 254),
    Case(f"ecr get-download-url-for-layer {APP} --layer-digest {NO_DIGEST}", 254),
    # Errors of the command line, and around it.
    Case(f"{COMPLETE} --upload-id {UNKNOWN}", 252, "the usage names asyncpush"),
    Case(f"{COMPLETE} --upload-id {UNKNOWN} --layer-digests {NEW} --bogus", 252, "the usage names asyncpush"),
    Case(f"{CHECK} {OLD} --output bogus", 252, "the usage names asyncpush"),
    Case("ecr no-such-operation", 252, "the usage names asyncpush"),
    Case("ecr", 252, "the usage names asyncpush"),
    Case(f"{CHECK}", 252),
    Case(f"{CHECK} {OLD} --query a[", 252),
    Case(f"{CHECK} {OLD} --query sum(layers)", 255),
    Case(f"{CHECK} {OLD} --endpoint-url 127.0.0.1:1", 252),
    Case(f"{CHECK} {OLD} --endpoint-url ftp://127.0.0.1", 252, "version 1 asks the network"),
    Case(f"{PART} --upload-id {UNKNOWN} --part-first-byte x --part-last-byte 1 --layer-part-blob a", 252, "worded"),
    Case(f"{GET} --image-ids latest", 252),
    Case(f"{GET} --image-ids imageTag=1,imageTag=2", 252),
    Case(f"{GET} --image-ids tag=1", 252),
    Case(f"{PUT} --image-manifest file://{{files}}/none", 252, "worded"),
    Case(f"{CHECK} {OLD}", 253, environment={"AWS_DEFAULT_REGION": "", "AWS_REGION": ""}),
    Case(f"{CHECK} {OLD}", 253, environment={"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}),
    Case(f"{CHECK} {OLD} --profile nobody", 255),
    Case(f"{CHECK} {OLD} --cli-read-timeout -1", 255),
    Case([*f"{CHECK} {OLD} --profile".split(), ""]),
    Case(f"{CHECK} {OLD} --endpoint-url http://", 255, "worded"),
    Case(f"{CHECK} {OLD} --endpoint-url https://127.0.0.1:1 --ca-bundle {{files}}/none", 255, "worded"),
    Case(f"{CHECK} {OLD} --endpoint-url https://127.0.0.1:1 --ca-bundle {{files}}/list.json", 255, "worded"),
    Case(f"{CHECK} {OLD} --endpoint-url http://127.0.0.1:1", 255, environment={"AWS_MAX_ATTEMPTS": "1"}),
    Case("ecr complete-layer-upload --version", 0, "its own version"),
    # ECR Public.
    Case(f"ecr-public batch-check-layer-availability {APP} --layer-digests {OLD}", 254),
    Case("ecr-public create-repository --repository-name cases-{region}/app "
         "--catalog-data description=words,architectures=ARM,x86-64,operatingSystems=Linux"),
    Case("ecr-public describe-repositories --repository-names cases-{region}/app "
         "--query repositories[].repositoryArn --output text"),
    Case("ecr-public create-repository --generate-cli-skeleton"),
    Case("ecr-public batch-get-image", 252, "the usage names asyncpush"),
)  # fmt: skip


@dataclass(frozen=True)
class Side:
    """A region in which one of the two finds its own repositories, uploads and images, made alike."""

    region: str
    environment: dict[str, str]
    values: dict[str, str]

    def words(self, case: Case) -> list[str]:
        """The case's command here."""
        words = case.words.split() if isinstance(case.words, str) else case.words
        return [word.format(**self.values) for word in words]

    def variables(self, case: Case) -> dict[str, str]:
        """Its environment; an empty value removes a variable."""
        here = {"AWS_REGION": self.region, "AWS_DEFAULT_REGION": self.region}
        return {**self.environment, **here, **case.environment}

    def neutral(self, text: str) -> str:
        """*text* without what differs between two sides, or from one moment to the next; lengths are kept."""
        text = text.replace(self.region, "some-region")
        text = re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", UNKNOWN, text)
        return re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?[+-]\d\d:\d\d", "some-time", text)


def make_side(url: str, environment: dict[str, str], region: str, files: Path) -> Side:
    """Create everything that the cases need."""
    ecr = judge_in(url, region)
    app = {"repositoryName": "cases/app"}
    for name, mutability in (("cases/app", "MUTABLE"), ("cases/locked", "IMMUTABLE")):
        ecr.create_repository(repositoryName=name, imageTagMutability=mutability)
        for data in (LAYER_BYTES, CONFIG_BYTES):
            complete(ecr, name, upload(ecr, name, data), data)
        ecr.put_image(repositoryName=name, imageTag="1", imageManifest=manifest(LAYER_BYTES))
    complete(ecr, "cases/locked", upload(ecr, "cases/locked", NEW_BYTES), NEW_BYTES)
    ecr.put_image(**app, imageTag="2", imageManifest=manifest(LAYER_BYTES, note="two"))
    values = {
        "files": str(files),
        "region": region,
        "url": url,
        "fresh": upload(ecr, "cases/app"),
        "abbreviated": upload(ecr, "cases/app"),
        "parts": upload(ecr, "cases/app"),
        "whole": upload(ecr, "cases/app", OTHER_BYTES),
        "wrong": upload(ecr, "cases/app", OTHER_BYTES),
        "twice": upload(ecr, "cases/app", LAYER_BYTES),
        "small": upload(ecr, "cases/app", LAYER_BYTES, OTHER_BYTES),
    }
    return Side(region, environment, values)


def upload(ecr: Any, repository: str, *parts: bytes) -> str:
    """An upload with these parts."""
    upload_id = ecr.initiate_layer_upload(repositoryName=repository)["uploadId"]
    first = 0
    for part in parts:
        ecr.upload_layer_part(
            repositoryName=repository,
            uploadId=upload_id,
            partFirstByte=first,
            partLastByte=first + len(part) - 1,
            layerPartBlob=part,
        )
        first += len(part)
    return str(upload_id)


def complete(ecr: Any, repository: str, upload_id: str, data: bytes) -> None:
    ecr.complete_layer_upload(repositoryName=repository, uploadId=upload_id, layerDigests=[digest(data)])


def write_files(folder: Path) -> None:
    """The files that the cases name."""
    (folder / "part").write_bytes(NEW_BYTES)
    (folder / "list.json").write_text(json.dumps([OLD, NO_DIGEST]))
    (folder / "manifest.json").write_text(manifest(LAYER_BYTES, NEW_BYTES))
    (folder / "manifest.old.json").write_text(manifest(LAYER_BYTES))
    (folder / "manifest.missing.json").write_text(manifest(b"never pushed"))
    check = {"repositoryName": "cases/app", "layerDigests": [OLD]}
    (folder / "check.json").write_text(json.dumps(check))
    (folder / "complete.json").write_text(
        json.dumps({"uploadId": UNKNOWN, "layerDigests": [OLD], "registryId": "000000000000"})
    )


#: Runs in the aws CLI's own environment: all commands in one process, since each start takes half a second.
_RUN_ALL = """
import contextlib, io, json, os, sys
from awscli.clidriver import create_clidriver
original, loader = dict(os.environ), None
for line in sys.stdin:
    case = json.loads(line)
    os.environ.clear()
    os.environ.update(original)
    for name, value in case["environment"].items():
        os.environ.pop(name, None)
        if value:
            os.environ[name] = value
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            driver = create_clidriver()
            # It remembers what it has read of botocore's data.
            loader = loader or driver.session.get_component("data_loader")
            driver.session.register_component("data_loader", loader)
            status = driver.main(case["words"])
        except SystemExit as end:
            status = end.code
    print(json.dumps([status, out.getvalue(), err.getvalue()]), flush=True)
"""


@dataclass(frozen=True)
class Answered:
    status: int
    out: str
    err: str


def run_aws_cli(aws: str, side: Side, environment: dict[str, str]) -> list[Answered]:
    """What the real aws CLI answers to the cases."""
    python = Path(aws).resolve().parent / "python3"
    lines = [json.dumps({"words": side.words(case), "environment": side.variables(case)}) for case in CASES]
    done = subprocess.run(
        [str(python), "-c", _RUN_ALL],
        input="\n".join(lines),
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    return [Answered(*json.loads(line)) for line in done.stdout.splitlines()]
