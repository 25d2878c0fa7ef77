"""Runs TensorRT engines, on the GPU and with the version that they were built for."""

from __future__ import annotations

from kdedge.targets.engines.engine import EngineRuntime
from kdedge.targets.tensorrt import TARGET

_RUNTIME = EngineRuntime(TARGET)
check_environment, load = _RUNTIME.check_environment, _RUNTIME.load
