"""Runs TensorRT engines, on the kind of GPU and with the version for which they were built."""

from __future__ import annotations

import functools

from kdedge.targets.engines.engine import Engine
from kdedge.targets.tensorrt import TARGET

load = functools.partial(Engine, TARGET)
