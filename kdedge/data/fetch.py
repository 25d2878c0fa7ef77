"""Downloads and unpacks a benchmark set's files; each is complete or absent.

A downloaded archive is removed after unpacking; an archive that is there before is used and kept.
"""

from __future__ import annotations

import contextlib
import logging
import shlex
import shutil
import textwrap
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdedge.data._http import WAITS_S, AddressError, download, size_of
from kdedge.data.benchmarks import Benchmark, Download, is_there
from kdedge.data.unpack import temporary_name, unpack
from kdedge.errors import DataError, KdedgeError, SetupError
from kdedge.files import explain_os_error, locked, sha256_file, sync
from kdedge.progress import progress

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fetched:
    """The result of a fetch.

    Attributes:
        folder: the set's folder.
        new: fetched paths below it.
        kept: unpacked archives that were there before.
    """

    folder: Path
    new: tuple[str, ...]
    kept: tuple[str, ...]


def missing(downloads: Sequence[Download], folder: Path) -> list[Download]:
    """Returns the files of a set that are not in its folder."""
    return [wanted for wanted in downloads if not is_there(folder / wanted.gives)]


def fetch(benchmark: Benchmark, root: Path, *, waits_s: Sequence[float] = WAITS_S) -> Fetched:
    """Fetches the missing files of a benchmark set.

    Args:
        benchmark: the set.
        root: folder of all sets; created if missing.
        waits_s: seconds before each retry of a URL.

    Raises:
        SetupError: a file must be fetched by hand, or no server provides it; the others were
            fetched.
        DataError: a file has another size or hash than expected; an archive cannot be unpacked.
        ResourceError: the disk is full, or the folder may not be written.
        InUseError: another fetch uses the folder.
    """
    folder = root / benchmark.folder
    wanted = missing(benchmark.downloads, folder)
    if not wanted:
        there = _archives(benchmark.downloads, folder)
        _tidy(benchmark.downloads, folder, keep=there)
        return Fetched(folder, (), there)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise explain_os_error(error, folder) from error
    failed: dict[str, KdedgeError] = {}
    there = _archives(benchmark.downloads, folder)
    with locked(folder / ".fetch.lock", remedy="Another fetch may be running; wait for it."):
        for one in wanted:
            try:
                _bring(one, folder, waits_s)
            except (SetupError, DataError) as error:
                failed[one.name] = error
        _tidy(benchmark.downloads, folder, keep=there)
    if failed:
        raise _summary(benchmark.name, root, benchmark.downloads, failed)
    new = tuple(one.gives for one in wanted)
    return Fetched(folder, new, _archives(benchmark.downloads, folder))


def _bring(wanted: Download, folder: Path, waits_s: Sequence[float]) -> None:
    """Fetches and unpacks one file or its mirror; a download that has begun comes first."""
    choices, failures = with_mirrors([wanted]), list[KdedgeError]()
    choices.sort(key=lambda one: not _is_begun(folder / one.name))
    for one in choices:
        try:
            _bring_itself(one, folder, waits_s)
        except (SetupError, DataError) as error:
            failures.append(error)
            if one is not choices[-1]:
                why, other = str(error).partition("\n")[0], choices[-1].name
                _LOG.info("%s\nTrying another archive with the same content: %s.", why, other)
        else:
            return
    raise _worst(failures)("\n".join(map(str, failures)))


def _worst(errors: Iterable[KdedgeError]) -> type[KdedgeError]:
    """The error class for several errors: wrong data before a missing file."""
    return DataError if any(isinstance(error, DataError) for error in errors) else SetupError


def _bring_itself(wanted: Download, folder: Path, waits_s: Sequence[float]) -> None:
    path = folder / wanted.name
    if not path.exists():
        _fetch_file(wanted, path, waits_s)
    else:
        problem = _what_is_wrong(wanted, path)
        if problem:
            raise DataError(f"{path}: {problem}.\n  Remove it and run the command again.")
    if wanted.unpack is not None:
        unpack(path, folder, wanted)


def _is_begun(path: Path) -> bool:
    return path.exists() or _part(path).exists()


def _part(path: Path) -> Path:
    """The part of a file that has been downloaded."""
    return path.with_name(f"{path.name}.part")


def _fetch_file(wanted: Download, path: Path, waits_s: Sequence[float]) -> None:
    if not wanted.urls:
        where = wanted.manual or "It is in another archive of the set, which is missing."
        raise SetupError(f"{where}\n  Put it at {path}.")
    failures: list[AddressError] = []
    for url in wanted.urls:
        _LOG.info("Fetching %s from %s.", wanted.name, url)
        try:
            _fetch_from(url, wanted, path, waits_s)
        except AddressError as error:
            failures.append(error)
            if url != wanted.urls[-1]:
                _LOG.info("%s. Trying the next URL.", error)
        else:
            return
    reasons = "\n".join(f"{error}." for error in failures)
    places = "\n  ".join(wanted.urls)
    kind = DataError if any(error.kind == "wrong" for error in failures) else SetupError
    raise kind(f"{reasons}\n  To fetch it by hand, put it at {path}. It is at:\n  {places}")


def _fetch_from(url: str, wanted: Download, path: Path, waits_s: Sequence[float]) -> None:
    """Downloads a file from one address, checks it and moves it into place."""
    part = _part(path)
    was_begun = size_of(part) > 0
    download(url, part, wanted, waits_s=waits_s)
    problem = _what_is_wrong(wanted, part)
    if problem and was_begun:
        # The part from an earlier fetch, or from another URL, may belong to another file
        part.unlink()
        download(url, part, wanted, waits_s=waits_s)
        problem = _what_is_wrong(wanted, part)
    if problem:
        part.unlink()
        raise AddressError(f"The file from {url} {problem}", "wrong")
    try:
        with part.open("rb+") as file:
            sync(file.fileno(), part)
        part.replace(path)
    except OSError as error:
        raise explain_os_error(error, path) from error


def _what_is_wrong(wanted: Download, path: Path) -> str | None:
    """How a file differs from the expected size and hash; None if it does not."""
    n_bytes = path.stat().st_size
    if n_bytes == 0:
        return "is empty"
    if wanted.n_bytes is not None and n_bytes != wanted.n_bytes:
        return f"has {n_bytes} bytes, expected {wanted.n_bytes}"
    if wanted.sha256 is None:
        return None
    with progress(f"checking {wanted.name}", n_bytes, in_bytes=True) as advance:
        found = sha256_file(path, progress=advance)
    if found != wanted.sha256:
        return f"has the SHA-256 {found}, expected {wanted.sha256}"
    return None


def _tidy(downloads: Sequence[Download], folder: Path, *, keep: Collection[str]) -> None:
    """Removes leftovers of files that are complete, but no archive that was there before."""
    both = with_mirrors(downloads)
    for one in both:
        path = folder / one.name
        # One archive may hold several
        if missing([other for other in both if other.name == one.name], folder):
            continue
        with contextlib.suppress(OSError):  # no error for a set that is complete
            if one.unpack is not None and one.name not in keep:
                path.unlink(missing_ok=True)
            _part(path).unlink(missing_ok=True)
        shutil.rmtree(folder / temporary_name(path), ignore_errors=True)


def _archives(downloads: Sequence[Download], folder: Path) -> tuple[str, ...]:
    archives = (one.name for one in with_mirrors(downloads) if one.unpack)
    return tuple(name for name in archives if (folder / name).is_file())


def with_mirrors(downloads: Sequence[Download]) -> list[Download]:
    """The files, each followed by its mirror."""
    both = ((one, one.mirror) for one in downloads)
    return [one for pair in both for one in pair if one is not None]


def _summary(
    name: str, root: Path, downloads: Sequence[Download], failed: dict[str, KdedgeError]
) -> KdedgeError:
    """One error for all files that could not be fetched."""
    reasons = "\n".join(
        f"  {file}:\n{textwrap.indent(str(error), '    ')}" for file, error in failed.items()
    )
    return _worst(failed.values())(
        f"{name}: {len(failed)} of {len(downloads)} files are missing; the others are complete.\n"
        f"{reasons}\n"
        f"  Then run again: kdedge data fetch {name} --data {shlex.quote(str(root))}"
    )
