"""Batches of waiting images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from kdedge.inference.classify import Classifier
from kdedge.runtime.artifact import Artifact
from kdedge.serving.model import Batcher, ServedModel


def test_a_batch_has_images_of_one_model(
    artifact: Artifact, gated_backend: Callable[[], Any]
) -> None:
    old, new = gated_backend(), gated_backend()
    models = [ServedModel(Classifier(artifact, artifact.files[0], one)) for one in (old, new)]
    sizes: list[int] = []
    batcher = Batcher(1, sizes.append)
    old.gate.clear()
    image = np.zeros((1, 3, 16, 16), np.float32)
    futures = [batcher.submit(models[0], lambda: image)]
    old.begun.acquire()
    # As while a new artifact takes over
    futures += [batcher.submit(models[number], lambda: image) for number in (0, 1, 0)]
    old.gate.set()
    assert [len(future.result(10)) for future in futures] == [1] * 4
    assert (old.sizes, new.sizes, sizes) == ([1] * 3, [1], [1] * 4)
    assert batcher.close(patience_s=10)
