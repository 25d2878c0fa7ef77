"""Runs engines of TensorRT for RTX, whose kernels are compiled at their first use on a GPU."""

from __future__ import annotations

import functools

from kdedge.targets.engines.engine import Engine
from kdedge.targets.tensorrt_rtx import TARGET

load = functools.partial(Engine, TARGET)
