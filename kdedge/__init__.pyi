"""The names of the Python API, and the modules that have them; `__init__.py` reads them here."""

from kdedge.api.about import doctor as doctor, list_methods as list_methods, schema as schema
from kdedge.api.artifact import (
    change_classes as change_classes,
    cpu_choice as cpu_choice,
    open_artifact as open_artifact,
    verify_client as verify_client,
    write_browser as write_browser,
    write_smoke_images as write_smoke_images,
    write_triton as write_triton,
)
from kdedge.api.bench import bench as bench, check_speed as check_speed
from kdedge.api.compare import Comparison as Comparison, compare as compare
from kdedge.api.data import (
    fetch_set as fetch_set,
    list_sets as list_sets,
    open_set as open_set,
    scan_images as scan_images,
    verify_set as verify_set,
)
from kdedge.api.demo import demo as demo
from kdedge.api.evaluate import evaluate as evaluate, report as report
from kdedge.api.export import export as export
from kdedge.api.model import LoadedModel as LoadedModel, load as load
from kdedge.api.predict import Predictions as Predictions, predict as predict
from kdedge.api.run import Run as Run, list_runs as list_runs, open_run as open_run
from kdedge.api.serve import serve as serve, watch as watch
from kdedge.api.suite import run_suite as run_suite
from kdedge.api.train import (
    check as check,
    distill as distill,
    fill_teacher_store as fill_teacher_store,
    import_checkpoint as import_checkpoint,
    init as init,
    pseudo_label as pseudo_label,
    teach as teach,
    train as train,
)
from kdedge.config.load import load_recipe as load_recipe
from kdedge.config.recipe import Recipe as Recipe
from kdedge.errors import (
    CellsFailed as CellsFailed,
    DataError as DataError,
    DivergedError as DivergedError,
    GateError as GateError,
    InUseError as InUseError,
    Interrupted as Interrupted,
    KdedgeError as KdedgeError,
    RecipeError as RecipeError,
    ResourceError as ResourceError,
    SetupError as SetupError,
)
from kdedge.progress import progress_to as progress_to

__version__: str
__all__: list[str]
