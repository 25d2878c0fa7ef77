"""ExecuTorch: programs for phones and other devices, which XNNPACK runs in float32 or INT8."""

from __future__ import annotations

from kdedge.targets.base import Package, Target

EXECUTORCH = Package(
    "executorch",
    "building and running ExecuTorch programs",
    extra="executorch",
    entry="executorch.extension.pybindings.portable_lib:_load_program",
)

TARGET = Target(
    name="executorch",
    label="ExecuTorch",
    flag="--executorch",
    help="ExecuTorch programs, for phones and ARM boards.",
    files="model*.pte",
    source="folded model",
    precisions=("fp32", "int8"),
    cpu_precisions=("fp32", "int8"),
    build_packages=(EXECUTORCH,),
    run_package=EXECUTORCH,
    backend="executorch",
    base_precision="fp32",
    remark="Running them with Python takes torch; apps on devices need neither.",
)
