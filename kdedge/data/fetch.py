"""Downloads and unpacks a benchmark set's files; each is complete or absent.

They come from one archive on the Hugging Face Hub, which is removed after unpacking. An official
archive that the user has downloaded is used and kept.
"""

from __future__ import annotations

import contextlib
import logging
import shlex
import shutil
import textwrap
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdedge.data.benchmarks import Benchmark, Download, HubArchive, is_there
from kdedge.data.unpack import temporary_name, unpack
from kdedge.errors import (
    DataError,
    KdedgeError,
    MissingPackage,
    ResourceError,
    SetupError,
    first_line,
)
from kdedge.files import explain_os_error, locked, sha256_file
from kdedge.progress import progress, readable_bytes

log = logging.getLogger(__name__)


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
    return [download for download in downloads if not is_there(folder / download.gives)]


def fetch(benchmark: Benchmark, root: Path) -> Fetched:
    """Fetches the missing files of a benchmark set.

    Args:
        benchmark: the set.
        root: folder of all sets; created if missing.

    Raises:
        SetupError: a file must be fetched by hand, or the Hub does not provide it; the others were
            fetched. `MissingPackage` without the Hub's client.
        DataError: an archive has another hash than expected, or cannot be unpacked.
        ResourceError: the disk is full, or the folder may not be written.
        InUseError: another fetch uses the folder.
    """
    folder = root / benchmark.folder
    downloads = missing(benchmark.downloads, folder)
    archives = [name for name in _archive_names(benchmark) if (folder / name).is_file()]
    failed: dict[str, KdedgeError] = {}
    if downloads:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise explain_os_error(error, folder) from error
        with locked(folder / ".fetch.lock", remedy="Another fetch may be running; wait for it."):
            for missing_file in downloads:
                try:
                    _bring(missing_file, folder, benchmark.mirror)
                except (SetupError, DataError) as error:
                    failed[missing_file.name] = error
    _tidy(benchmark, folder, keep=archives)
    if failed:
        raise _summary(benchmark, root, failed)
    return Fetched(folder, tuple(download.gives for download in downloads), tuple(archives))


def _bring(download: Download, folder: Path, mirror: HubArchive | None) -> None:
    """Unpacks a file of a set from its own archive, if that is there, or from the Hub's."""
    path = folder / download.name
    if path.exists():
        problem = _wrong_hash(path, download.sha256)
        if problem:
            raise DataError(f"{path} {problem}.\n  Remove it and run the command again.")
        unpack(path, folder, gives=download.gives, top=download.top, into=download.into)
        return
    by_hand = "\n  ".join([f"Download it by hand to {path}. It is at:", *download.urls])
    if download.manual is not None:
        by_hand = f"{download.manual}\n  Put it at {path}."
    # No archive of gigabytes for a list alone
    if mirror is None or not (download.is_archive or (folder / mirror.name).exists()):
        raise SetupError(by_hand)
    try:
        archive = _download(mirror, folder)
        unpack(archive, folder, gives=download.gives, top=mirror.top)
    except (SetupError, DataError) as error:
        kind = DataError if isinstance(error, DataError) else SetupError
        raise kind(f"{error}\n{by_hand}") from error


def _download(mirror: HubArchive, folder: Path) -> Path:
    """Downloads an archive of the Hub; `NAME.part` has the bytes so far.

    `hf_hub_download` starts anew after a killed process, at the first byte of forty gigabytes.
    """
    path = folder / mirror.name
    if path.exists():
        return path
    try:
        from huggingface_hub import get_hf_file_metadata, hf_hub_url
        from huggingface_hub.file_download import http_get
    except ImportError as error:
        purpose = "Downloading benchmark sets"
        raise MissingPackage("huggingface_hub", extra="train", purpose=purpose) from error
    url = hf_hub_url(mirror.repository, mirror.name, revision=mirror.commit)
    part = path.with_name(f"{path.name}.part")
    n_had = part.stat().st_size if part.exists() else 0
    # The Hub's client raises the errors of its transport
    try:
        n_bytes = get_hf_file_metadata(url).size or 0
    except Exception as error:
        raise _no_download(url, error) from error
    free, needed = shutil.disk_usage(folder).free, 2 * n_bytes - n_had
    if free < needed:
        raise ResourceError(
            f"{folder} has {readable_bytes(free)} free, {mirror.name} and its images need"
            f" {readable_bytes(needed)} more.\n"
            "  Free some space, or name another folder with --data."
        )
    log.info("Fetching %s (%s) from %s.", mirror.name, readable_bytes(n_bytes), url)
    try:
        with part.open("ab") as file:
            http_get(url, file, resume_size=n_had, expected_size=n_bytes or None)
    except Exception as error:
        if not isinstance(error, OSError) or not error.errno:
            raise _no_download(url, error) from error
        raise ResourceError(
            f"{explain_os_error(error, part)}\n  The downloaded part is kept; run the same"
            " command again to continue."
        ) from error
    problem = _wrong_hash(part, mirror.sha256)
    if problem:
        part.unlink()
        raise DataError(f"{url} {problem}.")
    part.replace(path)
    return path


def _no_download(url: str, error: Exception) -> SetupError:
    return SetupError(f"{url} cannot be downloaded: {first_line(error)}.")


def _wrong_hash(path: Path, expected: str | None) -> str | None:
    """How a file differs from the expected SHA-256; None if it does not."""
    if expected is None:
        return None
    with progress(f"checking {path.name}", path.stat().st_size, in_bytes=True) as advance:
        sha256 = sha256_file(path, progress=advance)
    return None if sha256 == expected else f"has the SHA-256 {sha256}, expected {expected}"


def _tidy(benchmark: Benchmark, folder: Path, *, keep: Collection[str]) -> None:
    """Removes what was downloaded and half unpacked of a set whose images are complete."""
    if any(download.is_archive for download in missing(benchmark.downloads, folder)):
        return
    for name in _archive_names(benchmark):
        path = folder / name
        with contextlib.suppress(OSError):  # no error for a set that is complete
            if name not in keep:
                path.unlink(missing_ok=True)
            path.with_name(f"{name}.part").unlink(missing_ok=True)
        shutil.rmtree(folder / temporary_name(path), ignore_errors=True)


def _archive_names(benchmark: Benchmark) -> list[str]:
    mirror = [] if benchmark.mirror is None else [benchmark.mirror.name]
    return [download.name for download in benchmark.downloads if download.is_archive] + mirror


def _summary(benchmark: Benchmark, root: Path, failed: dict[str, KdedgeError]) -> KdedgeError:
    """One error for all files that could not be fetched: of wrong data before a missing file."""
    reasons = "\n".join(
        f"  {file}:\n{textwrap.indent(str(error), '    ')}" for file, error in failed.items()
    )
    is_wrong = any(isinstance(error, DataError) for error in failed.values())
    return (DataError if is_wrong else SetupError)(
        f"{benchmark.name}: {len(failed)} of {len(benchmark.downloads)} files are missing; the"
        f" others are complete.\n{reasons}\n"
        f"  Then run again: kdedge data fetch {benchmark.name} --data {shlex.quote(str(root))}"
    )
