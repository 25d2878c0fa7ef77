"""Runs TensorRT engines, on the GPU and with the version that they were built for."""

from __future__ import annotations

import functools

from kdedge.targets.engines.engine import Engine
from kdedge.targets.tensorrt import TARGET

load = functools.partial(Engine, TARGET)
