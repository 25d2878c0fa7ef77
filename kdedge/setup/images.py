"""A source, and which of its images are used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from kdedge.data.images import BadImage, image_list_hash
from kdedge.data.sources import Joined, Source
from kdedge.files import sha256_json


@dataclass(frozen=True)
class Images:
    """A source and its readable images.

    Attributes:
        source: gives bytes and labels by index.
        indices: positions in the source that are used.
        skipped: unreadable images and why.
        digests: position -> hash of the image's bytes, for each readable image.
    """

    source: Source
    indices: tuple[int, ...]
    skipped: tuple[BadImage, ...]
    digests: Mapping[int, str]

    @cached_property
    def list_hash(self) -> str:
        """Hash of the images in use, for provenance."""
        return image_list_hash(self.source, self.indices, self.digests)

    def hash_with(self, class_names: Sequence[str]) -> str:
        """Hash of the images in use and a class list; equal hashes make accuracies comparable."""
        return sha256_json([self.list_hash, list(class_names)])

    def only(self, indices: Sequence[int]) -> Images:
        """Returns the same source with only these images."""
        return replace(self, indices=tuple(indices))

    def labels(self) -> dict[int, int]:
        """Position in the source -> class index, of the images that have a label."""
        found = {index: self.source.items[index].label for index in self.indices}
        return {index: label for index, label in found.items() if label is not None}

    def without(self, other: Images) -> Images:
        """Returns the images whose bytes are not among another's."""
        shared = set(self.shared_with(other))
        return self.only([i for i in self.indices if i not in shared])

    def shared_with(self, other: Images) -> tuple[int, ...]:
        """Positions of the images in use whose bytes are among another's."""
        contents = {other.digests[index] for index in other.indices}
        return tuple(i for i in self.indices if self.digests[i] in contents)

    def with_those_of(self, other: Images) -> Images:
        """Returns the images of both, with one source after the other."""
        n_own = len(self.source.items)
        return Images(
            Joined(self.source, other.source),
            (*self.indices, *(n_own + i for i in other.indices)),
            (*self.skipped, *other.skipped),
            {**self.digests, **{n_own + i: digest for i, digest in other.digests.items()}},
        )

    def of_classes(self, classes: Sequence[int]) -> Images:
        """Returns the images whose label is one of these classes."""
        wanted = set(classes)
        return self.only([i for i in self.indices if self.source.items[i].label in wanted])
