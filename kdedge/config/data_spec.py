"""The schema of a recipe's `classes` and `data`: class names, image sources, labels, split."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import BaseModel, Field, model_validator

from kdedge.config.fields import (
    HUB,
    MAX_COUNT,
    DatasetPlace,
    Distinct,
    PercentOrCount,
    PlainText,
    RecipeFile,
    RecipeFolder,
    ShardPattern,
    Strict,
    TablePattern,
    Template,
    percent_value,
)
from kdedge.records.evaluation import SplitName

SOURCES = ("folder", "webdataset", "list", "parquet", "huggingface", "benchmark", "synthetic")
"""The keys that say where a source's images are; a source has exactly one of them."""


def _exactly_one(spec: BaseModel, names: tuple[str, ...]) -> None:
    given = [name for name in names if getattr(spec, name) is not None]
    if len(given) != 1:
        got = " and ".join(given) or "none of them"
        raise ValueError(f"needs exactly one of {', '.join(names)}; got {got}")


class ClassesSpec(Strict):
    """The class names; labels and stored class vectors use their order."""

    file: RecipeFile | None = Field(
        None, description="UTF-8 text file with one class name per line, in label order."
    )
    benchmark: PlainText | None = Field(
        None, description="Name of a benchmark set whose class names are used, such as sun397."
    )
    synthetic: Literal["shapes"] | None = Field(
        None, description="shapes: the class names of the built-in drawings."
    )
    names: Annotated[tuple[PlainText, ...], Distinct] | None = Field(
        None,
        strict=False,
        min_length=2,
        description="List of class names. `classes: [cat, dog]` is short for this.",
    )
    texts: RecipeFile | None = Field(
        None,
        description='JSON file with sentences about each class, {"cat": ["a small animal with'
        ' whiskers."], ...}. Only methods that learn from texts use it: lafter.',
    )
    template: Template = Field(
        "a photo of a {}.",
        description="Sentence that the text encoder reads for a class; {} stands for the class"
        " name. The default is CLIP's (arXiv:2103.00020, 3.1.4).",
    )

    @model_validator(mode="after")
    def _check(self) -> ClassesSpec:
        _exactly_one(self, ("file", "benchmark", "synthetic", "names"))
        return self


class SourceSpec(Strict):
    """A source of images: exactly one of folder, webdataset, list, parquet and so on."""

    folder: RecipeFolder | None = Field(
        None,
        description="Folder of images, subfolders included. For labels, it has one subfolder per"
        " class, with the class's name. Classes without a subfolder are not trained on; a warning"
        " lists them.",
    )
    webdataset: ShardPattern | None = Field(
        None,
        description='Tar shards, such as "shards-{000..063}.tar", with jpg, png or webp members.'
        " For labels, cls members hold the class's position in the class list, from 0, or its name."
        " A number in cls is always a position; in lists and tables, a class of that name comes"
        " first.",
    )
    list: RecipeFile | None = Field(
        None,
        description="CSV file of images. A header may name columns: path, image, filename or"
        " similar for the images; label, class or similar for the class names, if labels are"
        " needed. Without a header, the path comes first and the label second.",
    )
    parquet: TablePattern | None = Field(
        None,
        description="Parquet files that hold images as bytes: a file, a folder of files, or a"
        ' pattern such as "train-*.parquet".',
    )
    huggingface: DatasetPlace | None = Field(
        None,
        description="Folder that a Hugging Face dataset's save_to_disk wrote. If it has several"
        " splits, name the folder of one split. Or hf://datasets/OWNER/NAME, a dataset on"
        " the Hub, which is downloaded once; add /CONFIG if it has several configurations.",
    )
    image_column: PlainText | None = Field(
        None,
        description="Column of the images, for parquet and huggingface. Default: the only image"
        " column.",
    )
    label_column: PlainText | None = Field(
        None,
        description="Column of the labels, for parquet and huggingface. Default: label, labels, or"
        " the only column of class labels.",
    )
    benchmark: PlainText | None = Field(
        None, description="Name of a benchmark set, such as sun397; `kdedge data list` lists them."
    )
    synthetic: Literal["shapes"] | None = Field(
        None, description="shapes: built-in drawings, made from a seed without any download."
    )
    part: Literal["train", "val", "test"] = Field(
        "train",
        description="The official part to use. For benchmark, synthetic and datasets on the Hub"
        " only.",
    )

    @model_validator(mode="after")
    def _check(self) -> SourceSpec:
        _exactly_one(self, SOURCES)
        if self.part != "train" and not self.has_parts:
            raise ValueError(
                f"has part: {self.part}, which only benchmark, synthetic and hf:// have; name the"
                " folder, shards, list or table that hold that part"
            )
        is_table = self.parquet is not None or self.huggingface is not None
        if not is_table and (self.image_column or self.label_column):
            raise ValueError("has a column, which only parquet and huggingface have; leave it out")
        return self

    @property
    def has_parts(self) -> bool:
        """Whether `part` chooses among the official parts of the source."""
        is_on_hub = str(self.huggingface or "").startswith(HUB)
        return self.benchmark is not None or self.synthetic is not None or is_on_hub


class LabeledSpec(SourceSpec):
    """A labeled source, limited to a number of images per class."""

    shots: int | None = Field(
        None,
        ge=1,
        le=MAX_COUNT,
        description="Labeled images per class, drawn with the seed. Default: all. The published"
        " tables use 16 (arXiv:2307.06948, 4.1).",
    )


class UnlabeledSpec(SourceSpec):
    """A source whose labels are never trained on."""

    per_class: int | None = Field(
        None,
        ge=1,
        le=MAX_COUNT,
        description="Images per class, drawn with the seed. Default: all. The source must have"
        " labels, which are read for this draw only; images without a label are skipped. PromptKD"
        " uses 64 in its ablations (arXiv:2403.02781, tables 4 to 6), 16 to 256 in figure 4.",
    )
    hold_out: PercentOrCount | None = Field(
        None,
        description="Images that are not trained on, as a percentage or a count, chosen by the seed"
        " and the images' contents. If there is no data.test, agreement with the teacher is"
        " measured on these images; without them, on images that were trained on. `kdedge init`"
        " writes 5% unless there are test images and labels of every class. Default: none.",
    )
    include_test: bool | None = Field(
        None,
        description="Train on images that are in data.test, too. Default: they are left out, by"
        " their contents, unless they come from a benchmark set, whose parts are published.",
    )


class DataSpec(Strict):
    """The images for training and evaluation."""

    unlabeled: UnlabeledSpec | None = Field(
        None,
        description="Images that the student is trained on. They may be the labeled images; labels"
        " are not used.",
    )
    labeled: LabeledSpec | None = Field(
        None, description="Labeled images that the teacher and the baselines are trained on."
    )
    pseudo_labels: RecipeFile | None = Field(
        None,
        description="File of labels for images of data.unlabeled. `kdedge pseudo-label` writes it;"
        " you may correct it. Supervised methods train on them as on data.labeled, over all"
        " classes. An image that has a label in data.labeled keeps it.",
    )
    validation: LabeledSpec | None = Field(
        None,
        description="Labeled images that choose the best epoch, for selection: validation. Its"
        " shots are drawn after those of data.labeled, from the same random stream.",
    )
    test: SourceSpec | None = Field(
        None, description="Labeled images that accuracy is measured on."
    )
    split: SplitName = Field(
        "all",
        description="all: train and test on every class. base-to-novel: use labels of the first"
        " half of the classes only, and test each half separately (arXiv:2203.05557, 4.1).",
    )
    max_bad_images: PercentOrCount = Field(
        "1%",
        description="Unreadable images that a source may have: a count, or a percentage rounded up;"
        " more are an error. They are skipped and listed in skipped.csv.",
    )
    root: RecipeFolder | None = Field(
        None,
        description="Folder of the benchmark sets. Default: the environment variable KDEDGE_DATA,"
        " else ./data.",
    )

    @model_validator(mode="after")
    def _check(self) -> DataSpec:
        if self.pseudo_labels is not None and self.unlabeled is None:
            raise ValueError(
                "has pseudo_labels without unlabeled, the images that they belong to; add unlabeled"
            )
        return self


def to_count(share: str | int, n_images: int, rounded: Callable[[float], int] = math.floor) -> int:
    """Converts a count, or a percentage of `n_images`, to a number of images."""
    return share if isinstance(share, int) else rounded(n_images * percent_value(share) / 100)


Share = Annotated[float, Field(gt=0, lt=1)]


class LogitAdjustmentSpec(Strict):
    """Shifts a model's logits so that it predicts each class as often as a prior says."""

    prior: Literal["auto", "uniform", "labels"] | dict[str, Share] = Field(
        "auto",
        description="Shares of the classes that the model will meet. uniform: equal shares. labels:"
        " as among all images of data.labeled, with one more of each class. A mapping of every"
        " class to its share, if you know them. auto: uniform, but with limited offsets, as the"
        " unlabeled images may be unequal themselves.",
    )
    strength: float = Field(
        1.0, gt=0, le=1, description="Part of the offsets that is subtracted; 1 for all."
    )

    @model_validator(mode="after")
    def _sums_to_one(self) -> LogitAdjustmentSpec:
        total = sum(self.prior.values()) if isinstance(self.prior, dict) else 1
        if not math.isclose(total, 1, abs_tol=1e-3):
            raise ValueError(
                f"has a prior that sums to {total:g}; the shares of all classes sum to 1"
            )
        return self
