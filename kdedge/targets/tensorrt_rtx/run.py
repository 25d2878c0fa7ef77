"""Runs engines of TensorRT for RTX, whose kernels are compiled at their first use on a GPU."""

from __future__ import annotations

from kdedge.targets.engines.engine import EngineRuntime
from kdedge.targets.tensorrt_rtx import TARGET

_RUNTIME = EngineRuntime(TARGET)
check_environment, load = _RUNTIME.check_environment, _RUNTIME.load
