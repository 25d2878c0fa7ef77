"""A target: the folded model's weights as NumPy arrays, and NumPy to run them."""

from kdedge.targets.base import Package, Target

TARGET = Target(
    name="toy",
    label="Toy",
    flag="--toy",
    help="The weights as NumPy arrays.",
    files="model*.npz",
    source="folded model",
    precisions=("fp32",),
    cpu_precisions=("fp32",),
    build_packages=(Package("toy_engine", "toy models", install="pip install toy-engine"),),
    backend="toy",
    remark="Slow, and plain to read.",
)
