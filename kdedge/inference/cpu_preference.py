"""What `kdedge export --cpu` measured, where the artifact is used: on this machine or another."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from kdedge.errors import KdedgeError
from kdedge.runtime.artifact import Artifact, ModelFile
from kdedge.runtime.cpu_choice import CpuChoice, CpuMachine, read_choices
from kdedge.runtime.threads import is_number_given

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class CpuPreference:
    """The measured file of this machine, or why there is none.

    Attributes:
        choice: the choice that holds here; None without one.
        problem: what to tell if no file is preferred; None if there is nothing to tell.
        remedy: the command that measures here.
    """

    choice: CpuChoice | None
    problem: str | None
    remedy: str

    @classmethod
    def of(cls, artifact: Artifact) -> CpuPreference:
        """The preference of an artifact on this machine."""
        remedy = f"Measure here with: kdedge export {artifact.path} --cpu"
        try:
            choices = read_choices(artifact)
        except KdedgeError as error:
            return cls(None, str(error).partition("\n")[0].rstrip("."), remedy)
        if not choices:
            return cls(None, None, remedy)
        here = CpuMachine.this()
        choice = next((one for one in choices if one.machine == here), None)
        if choice is None:
            elsewhere = "; ".join(str(one.machine) for one in choices)
            problem = (
                f"The fastest file was measured on another machine ({elsewhere}), not on {here}"
            )
            return cls(None, problem, remedy)
        if not any(map(choice.holds_for, artifact.files)):
            return cls(None, f"{choice.file} was built again after it was measured", remedy)
        return cls(choice, None, remedy)

    @property
    def file(self) -> str | None:
        """Name of the preferred file."""
        return None if self.choice is None else self.choice.file

    def threads(self, given: int | None) -> int | None:
        """Threads of the preferred file: those given by the user, or else those measured."""
        if given is not None or is_number_given() or self.choice is None:
            return given
        return self.choice.threads

    def warn(self, used: ModelFile) -> None:
        """Warns if the file in use is not the fastest as far as known."""
        problem = self.problem
        if self.choice is not None and used.name != self.choice.file:
            problem = f"{self.choice.file} was measured as the fastest, but cannot be used here"
        if problem is not None:
            _LOG.warning("%s: using %s. %s", problem, used.name, self.remedy)
