"""Keeps the frames of which the classifier is least certain, as the next unlabeled images."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from kdedge.watching.bounded_folder import BoundedFolder, as_jpeg
from kdedge.watching.frame import Thumbnail, is_changed


@dataclass(frozen=True)
class _Candidate:
    name: str
    score: float
    image: Image.Image


class Keeper:
    """Gives a folder the least certain frame of each scene.

    Args:
        folder: keeps those with the lowest scores.
    """

    def __init__(self, folder: BoundedFolder) -> None:
        self._folder = folder
        self._scene: Thumbnail | None = None
        self._best: _Candidate | None = None

    def add(self, name: str, score: float, image: Image.Image, small: Thumbnail) -> None:
        """Adds a frame; if it begins a new scene, the last scene's frame is written.

        Args:
            name: name of its file.
            score: of its best class.
            image: RGB.
            small: its thumbnail.

        Raises:
            ResourceError: the file could not be written.
        """
        is_new = is_changed(self._scene, small)
        finished = self._best if is_new else None
        if is_new:
            self._scene, self._best = small, None
        if self._folder.wants(score) and (self._best is None or score < self._best.score):
            self._best = _Candidate(name, score, image)
        if finished is not None:
            self._write(finished)

    def finish(self) -> None:
        """Writes the frame of the last scene.

        Raises:
            ResourceError: it could not be written.
        """
        finished, self._best = self._best, None
        if finished is not None:
            self._write(finished)

    def _write(self, one: _Candidate) -> None:
        if self._folder.wants(one.score):
            self._folder.write(one.name, one.score, as_jpeg(one.image))
