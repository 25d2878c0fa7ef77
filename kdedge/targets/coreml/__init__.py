"""Core ML packages, for iPhones, iPads and Macs."""

from __future__ import annotations

from kdedge.targets.base import Package, Target

COREML = Package("coremltools", "building Core ML packages", extra="coreml")

TARGET = Target(
    name="coreml",
    label="Core ML",
    flag="--coreml",
    help="Core ML packages, for iPhones, iPads and Macs.",
    files="model*.mlpackage.zip",
    source="folded model",
    precisions=("fp16", "int8"),
    build_packages=(COREML,),
    device="any",
    base_precision="fp16",
    remark="kdedge does not run them: compare their logits with the smoke set's on the device.",
)
