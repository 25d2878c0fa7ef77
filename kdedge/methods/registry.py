"""The methods by name, and their declarations. Imports no torch until a method is loaded.

Each file in `kdedge/methods` is a method, except for this one, `base.py` and `supervised.py`.
The rivals of `kdedge/paper/methods` and installed packages join through the entry-point group
`kdedge.methods`.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from types import ModuleType

from kdedge.config.optim_spec import OptimSettings
from kdedge.plugins import Plugins


@dataclass(frozen=True)
class DataNeeds:
    """The data that a method learns from, besides the frozen CLIP. It gets no other data.

    Attributes:
        labels: images of `data.labeled` with their labels; under `split: base-to-novel`, of the
            base classes only.
        unlabeled_images: images of `data.unlabeled`, of all classes, without labels.
        novel_class_names: whether the names of classes without labels take part in training. If
            not, training uses the labeled classes only, and evaluation adds the other names.
    """

    labels: bool = False
    unlabeled_images: bool = False
    novel_class_names: bool = False

    def __or__(self, other: DataNeeds) -> DataNeeds:
        """The data that at least one of two methods needs, such as a student and its teacher."""
        needs = zip(astuple(self), astuple(other), strict=True)
        return DataNeeds(*(mine or its for mine, its in needs))


@dataclass(frozen=True)
class Declaration:
    """The constant `METHOD` of a method's module, which describes the method.

    Attributes:
        label: the method's name in tables.
        paper: arXiv number of its paper, or of a related one if it has none.
        data_needs: the data that it learns from as a teacher or a baseline; None if it is always a
            student, which gets a teacher.
        student_data_needs: the data that it learns from as a student, besides its teacher; None if
            it cannot be one.
        optim: its authors' optimizer settings for it as a baseline; None if the recipe's `optim`
            applies.
        needs_clean_images: whether batches also hold each image as evaluation prepares it
            (`Batch.clean_images`).
        learns_from_texts: whether it learns from sentences about the classes, a recipe's
            `classes.texts`.
    """

    label: str
    paper: str
    data_needs: DataNeeds | None = None
    student_data_needs: DataNeeds | None = None
    optim: OptimSettings | None = None
    needs_clean_images: bool = False
    learns_from_texts: bool = False

    @property
    def needs_teacher(self) -> bool:
        """Whether it is always a student."""
        return self.data_needs is None

    @property
    def main_data_needs(self) -> DataNeeds:
        """The data that it learns from in the role that tables show it in."""
        return self.data_needs or self.student_data_needs or DataNeeds()


_METHODS = Plugins(
    noun="method",
    package="kdedge.methods",
    group="kdedge.methods",
    parts={
        "": {
            "METHOD": 'METHOD = Declaration(label="...", paper="arXiv:...",'
            " data_needs=DataNeeds(labels=True)), from kdedge.methods.registry.",
            "Settings": "a subclass of kdedge.methods.base.MethodSettings.",
            "Method": "a subclass of kdedge.methods.base.BaseMethod.",
        }
    },
    shared=("base", "registry", "supervised"),
)


def list_methods() -> tuple[str, ...]:
    """Names of all methods, sorted: kdedge's own and those of installed packages."""
    return _METHODS.names()


def load_method(name: str) -> ModuleType:
    """Imports a method's module, which holds `METHOD`, `Settings` and `Method`.

    An installed package cannot replace one of kdedge's own methods.

    Raises:
        RecipeError: there is no such method.
        MissingPackage: the method needs a package, such as torch, that is not installed.
        SetupError: an installed package's method cannot be imported or lacks a part.
    """
    return _METHODS.load(name)
