"""The file of an artifact to put on a device."""

from __future__ import annotations

from typing import NamedTuple

from kdedge.inference.choose import rank_files
from kdedge.records.speed import Measurement, SpeedResult
from kdedge.runtime.artifact import Artifact, ModelFile
from kdedge.runtime.cpu_choice import CpuChoice, measured_choice
from kdedge.targets.registry import find_target


class FileToShip(NamedTuple):
    """The file to put on a device.

    Attributes:
        file: the file.
        time: measured time of a call; None if it was not measured.
        machine: the machine that measured it.
        choice: what `kdedge export --cpu` measured here, or last; None if it measured nothing.
    """

    file: ModelFile
    time: Measurement | None
    machine: str
    choice: CpuChoice | None

    @property
    def processor(self) -> str:
        """The processor that runs the file: CPU or GPU."""
        return "GPU" if self.file.device == "gpu" else "CPU"


def file_to_ship(artifact: Artifact, speed: SpeedResult | None) -> FileToShip | None:
    """The file that `kdedge predict` uses here, if all runtimes are installed.

    If `kdedge export --cpu` ran on other machines only, it is the file that was chosen last.

    Args:
        artifact: the artifact.
        speed: times of `kdedge bench`, for a file that `export --cpu` did not choose.

    Returns:
        None if there is no file that passed its gate.
    """
    choice = measured_choice(artifact).choice
    files = rank_files(artifact, chosen=None if choice is None else choice.file)
    if not files:
        return None
    if choice is not None and choice.file == files[0].name:
        return FileToShip(files[0], choice.time, str(choice.machine), choice)
    # The size must agree as well: the records also have files of other artifacts and exports
    known = (files[0].name, files[0].n_bytes)
    rows = [] if speed is None else [r for r in speed.rows if (r.model, r.n_bytes) == known]
    if speed is None or not rows:
        return FileToShip(files[0], None, "", choice)
    device = speed.device
    machine = device["cpu"]
    if rows[0].device == "GPU":
        named = [gpu["name"] for gpu in device.get("gpus", ())]  # NVML lists none on a Jetson
        machine = next(iter(named), device.get("jetson", {}).get("board", "a GPU"))
    return FileToShip(files[0], rows[0].without_file(1), str(machine), choice)


def predict_flags(artifact: Artifact, file: ModelFile) -> list[str]:
    """The `kdedge predict` options that select a file on machines where nothing was measured."""
    if rank_files(artifact)[0] == file:
        return []
    flags = ["--precision", file.precision]
    if rank_files(artifact, precision=file.precision)[0] == file:
        return flags
    backend = find_target(file.target).backend
    assert backend is not None  # it is one of `rank_files`
    return [*flags, "--backend", backend]
