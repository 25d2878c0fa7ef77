"""Downloads and unpacks a benchmark set's files; each is complete or absent.

They come from one archive on the Hugging Face Hub, which is removed after unpacking. An archive
that is already in the set's folder is used and kept.
"""

from __future__ import annotations

import logging
import shlex
from dataclasses import dataclass
from pathlib import Path

from kdedge.errors import DataError, ResourceError, SetupError, explain_os_error, explaining_writes
from kdedge.files import check_room, sha256_file
from kdedge.locks import lock_file
from kdedge.messages import first_line, same_call
from kdedge.packages import need
from kdedge.paper.benchmark_sets import Benchmark, HubArchive, by_hand
from kdedge.paper.benchmark_sets.unpack import unpack
from kdedge.progress import progress, readable_bytes
from kdedge.records.record import Record

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fetched(Record):
    """The result of a fetch.

    Attributes:
        folder: the set's folder.
        new: fetched paths, relative to the set's folder.
        kept: the archive, if it was in the folder before.
    """

    folder: Path
    new: tuple[str, ...]
    kept: tuple[str, ...]


def fetch(benchmark: Benchmark, root: Path) -> Fetched:
    """Fetches the missing files of a benchmark set.

    Args:
        benchmark: the set.
        root: folder of all sets; created if missing.

    Raises:
        SetupError: a file must be fetched by hand, or the Hub does not provide it; the others were
            fetched.
        DataError: an archive has another hash than expected, or cannot be unpacked.
        ResourceError: the disk is full, or the folder may not be written.
        InUseError: another fetch uses the folder.
    """
    folder = root / benchmark.folder
    mirror = benchmark.mirror
    missing = benchmark.missing(root)
    if not missing:
        return Fetched(folder, (), ())
    with explaining_writes(folder):
        folder.mkdir(parents=True, exist_ok=True)
    kept = [mirror.name] if mirror is not None and (folder / mirror.name).exists() else []
    failure: SetupError | DataError | None = None
    with lock_file(folder / ".fetch.lock", remedy="Another fetch may be running; wait for it."):
        # Lists alone are not worth an archive of gigabytes
        if mirror is not None and (kept or any(file.has_images for file in missing)):
            try:
                unpack(_download(mirror, folder), folder, [file.path for file in missing])
            except (SetupError, DataError) as error:
                failure = error
        left = benchmark.missing(root)
        if mirror is not None and not kept and not any(file.has_images for file in left):
            (folder / mirror.name).unlink(missing_ok=True)
    if left:
        kind = DataError if isinstance(failure, DataError) else SetupError
        reason = "" if failure is None else f"\n  {failure}"
        raise kind(
            f"{benchmark.name}: {len(left)} of {len(benchmark.downloads)} files are missing; the"
            f" others are complete.{reason}\n"
            f"  By hand:\n{by_hand(folder, left)}\n"
            f"  Then run again: kdedge data fetch {benchmark.name} --data {shlex.quote(str(root))}"
        )
    return Fetched(folder, tuple(file.path for file in missing), tuple(kept))


def _download(mirror: HubArchive, folder: Path) -> Path:
    """Downloads an archive of the Hub; `NAME.part` holds the bytes so far.

    `hf_hub_download` would start again at the first of forty gigabytes if a process was killed.
    """
    path = folder / mirror.name
    if path.exists():
        return path
    need("huggingface_hub")
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import http_get

    url = hf_hub_url(mirror.repository, mirror.name, revision=mirror.commit)
    part = path.with_name(f"{path.name}.part")
    n_downloaded = part.stat().st_size if part.exists() else 0
    # The Hub's client passes on the errors of its HTTP library
    try:
        n_bytes = get_hf_file_metadata(url).size or 0
    except Exception as error:
        raise _download_error(url, error) from error
    remedy = "Free some space, or name another folder for the data."
    check_room(folder, 2 * n_bytes - n_downloaded, f"{mirror.name} with its images", remedy=remedy)
    log.info(f"Fetching {mirror.name} ({readable_bytes(n_bytes)}) from {url}.")
    try:
        with part.open("ab") as file:
            http_get(url, file, resume_size=n_downloaded, expected_size=n_bytes or None)
    except Exception as error:
        if not isinstance(error, OSError) or not error.errno:
            raise _download_error(url, error) from error
        raise ResourceError(
            f"{explain_os_error(error, part)}\n  {same_call()} again to continue: the"
            " downloaded part is kept."
        ) from error
    if mirror.sha256 is not None:
        with progress(f"checking {part.name}", part.stat().st_size, in_bytes=True) as advance:
            sha256 = sha256_file(part, progress=advance)
        if sha256 != mirror.sha256:
            part.unlink()
            raise DataError(f"{url} has the SHA-256 {sha256}, expected {mirror.sha256}.")
    part.replace(path)
    return path


def _download_error(url: str, error: Exception) -> SetupError:
    return SetupError(f"{url} cannot be downloaded: {first_line(error)}.")
