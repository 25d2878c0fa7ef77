"""The error for training whose numbers are no longer finite."""

from __future__ import annotations

from collections.abc import Sequence

from kdedge.config.recipe import OptimSettings
from kdedge.errors import DivergedError

_N_KEYS_SHOWN = 5


def diverged(
    what: str, *, place: str, keys: Sequence[str], settings: OptimSettings, state: str = ""
) -> DivergedError:
    """Makes the error, with remedies that fit the settings.

    Args:
        what: start of the message, such as `The loss is nan`.
        place: position in training, such as `epoch 2, step 4 of 7`.
        keys: keys of the images of that step.
        settings: the run's optimization.
        state: a sentence that says where the last good state is stored, if there is one.
    """
    images = ", ".join(keys[:_N_KEYS_SHOWN]) or "not named"
    more = ", ..." if len(keys) > _N_KEYS_SHOWN else ""
    remedies = [
        f"lower optim.lr (now {settings.lr:g})",
        *(["set optim.precision: fp32"] if settings.precision != "fp32" else []),
        *(["set optim.clip_grad_norm: 1.0"] if settings.clip_grad_norm is None else []),
    ]
    return DivergedError(
        f"{what}: training diverged at {place}. Images: {images}{more}.\n"
        f"  Remedies: {', or '.join(remedies)}." + (f"\n  {state}" if state else "")
    )
