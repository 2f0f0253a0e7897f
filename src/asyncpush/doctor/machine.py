"""The checks of this machine: proxies, disk space, open files, and the hosts that it must reach."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import anyio
from anyio import to_thread

from asyncpush import open_files
from asyncpush.doctor.findings import Check, Finding
from asyncpush.http.session import Proxies
from asyncpush.redaction import without_user
from asyncpush.settings import GiB, Settings
from asyncpush.units import size_text

#: Free space below which a note says so: a compressed or piped archive is unpacked there.
_LITTLE_SPACE = 4 * GiB
#: Free space for a journal: that of a large migration takes some 100 MiB.
_LITTLE_JOURNAL_SPACE = GiB // 4

#: What to do about a directory that does not answer.
_IF_SLOW = "check the disk, or the server of a network file system"

#: Connections besides the two for the parts of each layer, and the uses that share the limit of open files.
_SPARE_CONNECTIONS, _SHARES = 16, 6


@dataclass(frozen=True, slots=True)
class Host:
    """A host that a firewall must allow.

    Attributes:
        name: the host.
        port: the port.
        purpose: what it is for.
        is_required: whether the task fails without it.
        scheme: ``https`` or ``http``, which have proxies of their own.
    """

    name: str
    port: int
    purpose: str
    is_required: bool = True
    scheme: str = "https"

    @classmethod
    def of(cls, url: str, purpose: str, *, is_required: bool = True) -> Host | None:
        """The host of a URL; None if it is none."""
        try:
            parts = urlsplit(url)
            port = parts.port or (80 if parts.scheme == "http" else 443)
        except ValueError:
            return None
        if not parts.hostname:
            return None
        return cls(parts.hostname, port, purpose, is_required, parts.scheme)

    def __str__(self) -> str:
        return f"[{self.name}]:{self.port}" if ":" in self.name else f"{self.name}:{self.port}"


def machine_checks(journal: Path | None) -> list[Check]:
    """The checks of this machine.

    Args:
        journal: where the journal of a plan will be; None without one.
    """
    checks = [
        Check("proxy", check_proxies),
        Check("TMPDIR", _check_temporary, _IF_SLOW),
        Check("open files", _check_open_files),
    ]
    if journal is not None:
        checks.append(Check("journal", partial(_check_journal, journal), _IF_SLOW))
    return checks


async def check_proxies() -> list[Finding]:
    """Which proxies the environment names, and whether they accept connections."""
    proxies = Proxies.detect()
    found = []
    for scheme in ("https", "http"):
        address = proxies.addresses.get(scheme)
        if not address:
            continue
        variable = f"{scheme.upper()}_PROXY"
        host = Host.of(address if "://" in address else f"http://{address}", "proxy")
        shown = without_user(address) if "://" in address else address.rpartition("@")[2]
        if host is None:
            found.append(Finding("proxy", "problem", f"{variable} is not an address", "write http://HOST:PORT"))
        elif (failure := await _connect(host)) is not None:
            text = f"{shown}, the proxy for {scheme}, can't be reached: {failure}"
            found.append(Finding("proxy", "problem", text, f"check {variable}, or unset it"))
        else:
            found.append(Finding("proxy", "ok", f"{scheme} goes through {shown}, except for hosts in NO_PROXY"))
    return found or [Finding("proxy", "ok", "none is set")]


async def _check_temporary() -> list[Finding]:
    """The space for unpacked archives, where Python finds a directory for it: TMPDIR, or else the system's."""
    try:
        chosen, refused = await to_thread.run_sync(_temporary_folder, abandon_on_cancel=True)
        free = await to_thread.run_sync(_free_space, chosen, abandon_on_cancel=True)
    except OSError as error:
        text = f"no directory takes unpacked archives: {open_files.reason(error)}"
        return [Finding("TMPDIR", "problem", text, "set TMPDIR to a directory that can be written to")]
    text = f"{size_text(free)} are free in {chosen}, for unpacked archives"
    if refused:
        return [Finding("TMPDIR", "note", f"{refused} can't be written to; {text}", "correct TMPDIR")]
    if free < _LITTLE_SPACE:
        return [Finding("TMPDIR", "note", text, "set TMPDIR to a directory on a larger disk")]
    return [Finding("TMPDIR", "ok", text)]


def _temporary_folder() -> tuple[Path, str]:
    """The directory for temporary files, and TMPDIR if that is another one; blocks, since it tries to write."""
    chosen, wanted = Path(tempfile.gettempdir()), os.environ.get("TMPDIR", "")
    return chosen, wanted if wanted and Path(wanted).absolute() != chosen.absolute() else ""


async def _check_journal(journal: Path) -> list[Finding]:
    folder = journal.parent
    try:
        free = await to_thread.run_sync(_free_space, folder, abandon_on_cancel=True)
    except OSError as error:
        text = f"{folder} can't be written to, for {journal.name}: {open_files.reason(error)}"
        return [Finding("journal", "problem", text, "name another file with --journal")]
    text = f"{size_text(free)} are free in {folder}, for {journal.name}"
    if free < _LITTLE_JOURNAL_SPACE:
        return [Finding("journal", "note", text, "free some space, or name another file with --journal")]
    return [Finding("journal", "ok", text)]


def _free_space(folder: Path) -> int:
    """The free space, after a file has been written there and removed; blocks."""
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"asyncpush doctor")
        file.flush()
    return shutil.disk_usage(folder).free


async def _check_open_files() -> list[Finding]:
    limit, wanted = open_files.limit(), 2 * Settings().max_layers + _SPARE_CONNECTIONS
    granted = open_files.share(wanted)
    if granted < wanted:
        text = f"this process may open {limit}, which is enough for {granted} connections instead of {wanted}"
        return [Finding("open files", "note", text, f"raise the limit: ulimit -n {_SHARES * wanted}")]
    return [Finding("open files", "ok", f"this process may open {limit}")]


def host_checks(hosts: Iterable[Host | None]) -> list[Check]:
    """The checks that connect to *hosts*, each once."""
    by_address: dict[tuple[str, int], Host] = {}
    for host in hosts:
        if host is not None:
            known = by_address.get((host.name, host.port))
            if known is None or (host.is_required and not known.is_required):
                by_address[host.name, host.port] = host
    return [Check("host", partial(_check_host, host)) for host in by_address.values()]


async def _check_host(host: Host) -> Sequence[Finding]:
    """Whether a connection to *host* can be opened, if it is reached without a proxy."""
    what = f"{host} ({host.purpose})"
    if Proxies.detect().address_for(host.scheme, host.name, host.port):
        return [Finding("host", "ok", f"{what} goes through the proxy")]
    failure = await _connect(host)
    if failure is None:
        return [Finding("host", "ok", f"{what} accepts connections")]
    advice = f"let firewalls allow {host}"
    return [Finding("host", "problem" if host.is_required else "note", f"{what} can't be reached: {failure}", advice)]


async def _connect(host: Host) -> str | None:
    """Open a connection and close it; return why that fails."""
    try:
        stream = await anyio.connect_tcp(host.name, host.port)
    except OSError as error:
        cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
        # asyncio's own text repeats the address; a resolver's errors have other numbers, and their own text.
        number = cause.errno or 0
        return os.strerror(number) if number > 0 and not open_files.shortage(cause) else open_files.reason(cause)
    await stream.aclose()
    return None
