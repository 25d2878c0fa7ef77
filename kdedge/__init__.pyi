"""The names of the Python API, and the modules that have them; `__init__.py` reads them here."""

from kdedge.api.about import (
    Diagnosis as Diagnosis,
    Methods as Methods,
    doctor as doctor,
    list_methods as list_methods,
    schema as schema,
)
from kdedge.api.artifact import (
    change_classes as change_classes,
    cpu_choice as cpu_choice,
    open_artifact as open_artifact,
    verify_client as verify_client,
    write_smoke_images as write_smoke_images,
)
from kdedge.api.bench import bench as bench
from kdedge.api.check import check as check
from kdedge.api.compare import compare as compare
from kdedge.api.data import scan_images as scan_images
from kdedge.api.demo import Demo as Demo, demo as demo
from kdedge.api.evaluate import evaluate as evaluate
from kdedge.api.export import export as export
from kdedge.paper.benchmark_sets.api import (
    BenchmarkSet as BenchmarkSet,
    fetch_set as fetch_set,
    list_sets as list_sets,
    open_set as open_set,
    verify_set as verify_set,
)
from kdedge.paper.benchmark_sets.fetch import Fetched as Fetched
from kdedge.paper.benchmark_sets.verify import Verification as Verification
from kdedge.paper.checkpoints.api import import_checkpoint as import_checkpoint
from kdedge.api.init import NewRecipe as NewRecipe, init as init
from kdedge.api.model import LoadedModel as LoadedModel, load as load
from kdedge.api.predict import Predictions as Predictions, predict as predict
from kdedge.paper.pseudo_labels.api import pseudo_label as pseudo_label
from kdedge.api.report import report as report
from kdedge.api.run import (
    ImageFeatures as ImageFeatures,
    Run as Run,
    list_runs as list_runs,
    open_run as open_run,
)
from kdedge.serving.api import serve as serve, watch as watch
from kdedge.paper.suite.api import SuiteResult as SuiteResult, run_suite as run_suite
from kdedge.api.train import (
    distill as distill,
    fill_teacher_store as fill_teacher_store,
    teach as teach,
    train as train,
)
from kdedge.config.load import LoadedRecipe as LoadedRecipe, load_recipe as load_recipe
from kdedge.config.recipe import Recipe as Recipe
from kdedge.inference.comparison import Comparison as Comparison
from kdedge.data.survey import Survey as Survey
from kdedge.artifacts.client import ClientCheck as ClientCheck
from kdedge.errors import (
    CellsFailed as CellsFailed,
    DataError as DataError,
    DivergedError as DivergedError,
    GateError as GateError,
    InUseError as InUseError,
    Interrupted as Interrupted,
    KdedgeError as KdedgeError,
    MissingPackage as MissingPackage,
    RecipeError as RecipeError,
    ResourceError as ResourceError,
    SetupError as SetupError,
)
from kdedge.inference.results import (
    ClassScore as ClassScore,
    NonFiniteLogits as NonFiniteLogits,
    Prediction as Prediction,
)
from kdedge.progress import progress_to as progress_to
from kdedge.runtime.preprocess import UnreadableImage as UnreadableImage
from kdedge.runtime.process import compute_threads as compute_threads
from kdedge.records.evaluation import EvalResult as EvalResult, UnlabeledResult as UnlabeledResult
from kdedge.runs.provenance import Provenance as Provenance
from kdedge.runtime.artifact import Artifact as Artifact
from kdedge.runtime.cpu_choice import CpuChoice as CpuChoice
from kdedge.serving.server import Server as Server
from kdedge.records.speed import SpeedResult as SpeedResult
from kdedge.records.tables import Table as Table
from kdedge.paper.pseudo_labels.file import PseudoLabelFile as PseudoLabelFile
from kdedge.training.preflight import Preflight as Preflight
from kdedge.training.output_store.store import OutputStore as OutputStore

__version__: str
__all__: list[str]
