"""Writing the arrays: what the folded model holds, by the names that it has for them."""

import numpy as np


def check_environment():
    """NumPy is always there."""


def build(file, request):
    """Writes the weights and the two numbers that the arrays do not tell."""
    model, artifact = request.model, request.artifact
    arrays = {name: value.numpy() for name, value in model.state_dict().items()}
    appended_at = -1 if model.appended_at is None else model.appended_at
    numbers = {
        "n_heads": model.blocks[0].n_heads,
        "appended_at": appended_at,
        "batches": artifact.batches,
        "size_px": artifact.preprocess.size_px,
    }
    np.savez(request.path, **arrays, **numbers)
    return {"tool": "toy", "version": np.__version__}
