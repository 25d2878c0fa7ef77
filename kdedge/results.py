"""Records that commands write and tables read: plain values, full precision, no torch.

Accuracies are in percent (0-100). Nothing is rounded before it is stored; tables round what they
show.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from kdedge.errors import DataError

Split = Literal["all", "base-to-novel"]
Selection = Literal["last", "validation"]


def harmonic_mean(base: float, novel: float) -> float:
    """Harmonic mean of base and novel accuracy, both in percent; 0 where either is 0.

    Source: the base-to-novel protocol of CoCoOp (arXiv:2203.05557), HM = 2BN / (B + N).
    """
    if base <= 0 or novel <= 0:
        return 0.0
    return 2 * base * novel / (base + novel)


@dataclass(frozen=True)
class EvalResult:
    """What one evaluation of one model on one test set gave.

    Attributes:
        split: `all`, or `base-to-novel`: the first ceil(C / 2) classes against the others.
        selection: which weights were measured: the last epoch's, or the ones with the best
            accuracy on validation images.
        n_images: test images in all.
        all: accuracy of all images against all C names.
        base: accuracy of the base classes' images against base names only; None where the split
            is `all` or no image is of a base class.
        novel: the same of the other classes.
        harmonic_mean: of base and novel; None where one of them is None.
        ece_percent: expected calibration error of the softmax over all C names, 15 bins, L1.
        per_class: accuracy of each class's images against all C names, in class-list order; None
            for a class without test images.
    """

    split: Split
    selection: Selection
    n_images: int
    all: float
    base: float | None
    novel: float | None
    harmonic_mean: float | None
    ece_percent: float
    per_class: dict[str, float | None] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Gives plain values that JSON holds without loss."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: object) -> EvalResult:
        """Reads what `to_dict` gave, perhaps after a way through JSON.

        Raises:
            DataError: a key is missing or unknown, or a value is not what it should be.
        """
        if not isinstance(value, Mapping):
            raise DataError(f"An evaluation record is not a JSON object: got {_kind(value)}.")
        known = {entry.name for entry in fields(cls)}
        missing, unknown = sorted(known - value.keys()), sorted(map(str, value.keys() - known))
        if missing or unknown:
            raise DataError(
                f"An evaluation record has other keys than it should: missing {missing or 'none'},"
                f" unknown {unknown or 'none'}.\n  Run the evaluation again to write a new one."
            )
        per_class = value["per_class"]
        if not isinstance(per_class, Mapping):
            raise _bad_value("per_class", per_class, "an object of class names and percents")
        return cls(
            split=_one_of("split", value["split"], ("all", "base-to-novel")),
            selection=_one_of("selection", value["selection"], ("last", "validation")),
            n_images=_count("n_images", value["n_images"]),
            all=_percent("all", value["all"]),
            base=_percent_or_none("base", value["base"]),
            novel=_percent_or_none("novel", value["novel"]),
            harmonic_mean=_percent_or_none("harmonic_mean", value["harmonic_mean"]),
            ece_percent=_percent("ece_percent", value["ece_percent"]),
            per_class={
                str(name): _percent_or_none(f"per_class.{name}", percent)
                for name, percent in per_class.items()
            },
        )


def _kind(value: object) -> str:
    return f"{value!r:.60} ({type(value).__name__})"


def _bad_value(key: str, value: object, expected: str) -> DataError:
    return DataError(f"An evaluation record's {key} is {_kind(value)}; expected {expected}.")


def _one_of(key: str, value: object, known: tuple[str, ...]) -> Any:
    if value not in known:
        raise _bad_value(key, value, " or ".join(known))
    return value


def _count(key: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise _bad_value(key, value, "a whole number of at least 0")
    return value


def _percent(key: str, value: object) -> float:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not 0 <= value <= 100:  # type: ignore[arg-type, operator]
        raise _bad_value(key, value, "a percentage from 0 to 100")
    return float(value)  # type: ignore[arg-type]


def _percent_or_none(key: str, value: object) -> float | None:
    return None if value is None else _percent(key, value)
