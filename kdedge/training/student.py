"""A student's job: its teacher, and the unlabeled images that it learns from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from kdedge.config.load import LoadedRecipe
from kdedge.data.views import Augmentation
from kdedge.errors import RecipeError
from kdedge.runs.find import find_run, newest
from kdedge.runs.folder import RunFolder
from kdedge.runs.measure import ImageModel
from kdedge.runs.model import MethodModel, RunModel, load_run
from kdedge.setup.data import RecipeData
from kdedge.setup.method import (
    check_needs_no_vectors,
    has_class_vectors,
)
from kdedge.setup.role import RoleSetup, set_up_role
from kdedge.setup.sizes import check_sizes
from kdedge.setup.workspace import Workspace, choose_device
from kdedge.training.job import Job, TrainingData, make_job, n_stored_views, view_seed
from kdedge.training.teach import labeled_data, teacher_job, teacher_setup
from kdedge.training.teacher_store.fill import StoreFiller
from kdedge.training.teacher_store.store import TeacherStore, describe_store
from kdedge.training.teachers import AnyTeacher, FileTeacher, teacher_for
from kdedge.workers import WorkerResources


def student_job(loaded: LoadedRecipe, workspace: Workspace) -> Job:
    """The recipe's student without a teacher, so that its errors surface before that is trained."""
    named_teacher(loaded, workspace)  # so that its errors come first
    setup = set_up_role(loaded, "student", workspace)
    method = setup.choice.module.METHOD
    if not (method.needs_teacher or method.student_data_needs):
        raise RecipeError(
            f"student.method is {setup.choice.name}, which does not learn from a teacher.\n"
            "  Set student.method: promptkd."
        )
    setups, teacher = [setup], loaded.recipe.teacher
    if teacher is not None and teacher.is_trained:
        setups.insert(0, teacher_setup(loaded, workspace))
        check_teaches(setups[0], setup)
    check_sizes(*((each.loaded, each.role, each.backbone.sizes) for each in setups))
    images = RecipeData(loaded.recipe, setup.classes, workspace)
    unlabeled = images.require("unlabeled", "a student learns from unlabeled images")
    # Before validation images: the order of draws matters
    labeled = labeled_data(setup, images).images if setup.choice.data_needs.labels else None
    return make_job(setup, images, TrainingData(unlabeled, labeled=labeled))


def with_teacher(student: Job, teacher: AnyTeacher) -> Job:
    """The student's job with its teacher, and with stored features if the recipe stores them."""
    spec = student.setup.loaded.recipe.student
    assert spec is not None  # it was read from it
    filler = None
    if spec.views and not isinstance(teacher, FileTeacher):
        filler = _store_filler(teacher, student)
    return replace(student, teacher=teacher, filler=filler)


def one_pass_job(student: Job) -> Job | None:
    """The ridge student that `student.one_pass_first` asks for; None if it does not apply."""
    loaded, choice, teacher = student.setup.loaded, student.choice, student.teacher
    spec = loaded.recipe.student
    assert spec is not None  # its parts were read from it
    has_all = not {"depth", "merge_tokens"} & spec.settings.keys()  # else it would be larger
    if not spec.one_pass_first or choice.is_solved or not has_all:
        return None
    outputs = "logits" if choice.settings.has_own_class_vectors else "features"
    other = {"method": "ridge", "settings": {"outputs": outputs}, "optim": None}
    first = spec.model_copy(update=other)
    recipe = loaded.recipe.model_copy(update={"student": first})
    assert teacher is not None
    return with_teacher(
        student_job(replace(loaded, recipe=recipe), student.setup.workspace), teacher
    )


def check_teaches(teacher: RoleSetup, student: RoleSetup) -> None:
    """Checks that a teacher has what its student asks of it.

    Raises:
        RecipeError: the student needs class vectors, and the teacher has none; or the teacher does
            not know every class.
    """
    if has_class_vectors(teacher.choice) and not teacher.choice.settings.gives_logits:
        return
    why = teacher.choice.module.Method.why_no_class_vectors or "gives logits"
    check_needs_no_vectors(student.choice, f"{teacher.choice.name}, which {why}")
    known = {teacher.classes.names[label] for label in teacher.train_classes}
    unknown = [name for name in student.classes.names if name not in known]
    if unknown:
        raise RecipeError(
            f"The teacher, {teacher.choice.name}, was trained on {len(known)} of"
            f" {len(student.classes.names)} classes, without {unknown[0]!r}: it has no answer for"
            " the others.\n"
            "  Choose a teacher with class vectors, such as promptsrc or zeroshot, or set"
            " data.split: all."
        )


def file_teacher(student: Job) -> FileTeacher | None:
    """The file of probabilities that teaches; None where a model does.

    Raises:
        RecipeError: the student needs class vectors or image features of its teacher.
        DataError: the file is wrong, or lacks an image.
    """
    setup, recipe = student.setup, student.setup.loaded.recipe
    if recipe.teacher is None or recipe.teacher.file is None:
        return None
    check_needs_no_vectors(setup.choice, f"{recipe.teacher.file.name}, a file of probabilities")
    assert recipe.student is not None  # it was read from it
    if recipe.student.views:
        raise RecipeError(
            f"{setup.loaded.lines.where(('student', 'views'))}: student.views needs the image"
            " features of a teacher, but the teacher is a file of probabilities.\n"
            "  Leave student.views out."
        )
    held_out = RecipeData(recipe, setup.classes, setup.workspace).held_out()
    further = () if held_out is None else held_out.indices
    images = student.training_images
    pool = images.only(sorted({*images.indices, *further}))
    return FileTeacher(recipe.teacher.file, setup.classes, pool)


def named_teacher(loaded: LoadedRecipe, workspace: Workspace) -> RunFolder | None:
    """The finished run, of any kind, that the recipe names as its teacher; None if it names none.

    Raises:
        RecipeError: there is no such run, or the recipe has no teacher section.
    """
    spec = loaded.recipe.teacher
    if spec is None:
        raise RecipeError(
            "The recipe has no teacher section, but a student learns from a teacher.\n  Add one."
        )
    if spec.run is None:
        return None
    run = find_run(str(spec.run), workspace.root)
    if not run.is_finished:
        raise RecipeError(
            f"{loaded.lines.where(('teacher', 'run'))}: {spec.run} is not a finished run.\n"
            "  `kdedge runs` lists all runs; `kdedge teach` trains a teacher."
        )
    return run


def open_teacher(run: RunFolder, student: Job) -> RunModel:
    """Opens a finished run as a student's teacher, for the student's class list.

    Raises:
        RecipeError: its method cannot teach this student.
    """
    model = load_run(run, student.setup.workspace, names=student.setup.classes.names)
    check_teaches(model.setup, student.setup)
    return model


def find_teacher(student: Job) -> tuple[RunFolder | Job | None, Job]:
    """Finds a student's teacher: its run, or the job that trains it, or None for a file.

    A run is the one that the recipe names, or a finished one of the same job. A teacher that is to
    be trained is opened untrained, to try steps, which take as long as with a trained one.

    Returns:
        The run or the job, and the student's job with the opened teacher.

    Raises:
        RecipeError: the teacher cannot teach this student.
    """
    loaded, workspace = student.setup.loaded, student.setup.workspace
    teacher: AnyTeacher | None = file_teacher(student)
    if teacher is not None:
        return None, with_teacher(student, teacher)
    run = named_teacher(loaded, workspace)
    if run is None:
        job = teacher_job(loaded, workspace)
        run = workspace.group.on_rank0(partial(newest, workspace.root, key=job.key()))
        if run is None:
            return job, with_teacher(student, job.model())
    return run, with_teacher(student, open_teacher(run, student))


def _store_filler(teacher: MethodModel, student: Job) -> StoreFiller:
    """Stores a teacher's features."""
    setup, images = student.setup, student.training_images
    recipe, optim = setup.loaded.recipe, setup.choice.optim
    # What is solved in one pass sees images as in evaluation, and so does its teacher
    is_solved = setup.choice.is_solved
    answering_teacher = teacher if is_solved else teacher_for(setup.backbone, teacher)
    augment = None
    if not is_solved:
        seed = view_seed(recipe)
        augment = Augmentation(seed, optim.crop_scale_min, optim.flip, optim.strong_views)
    dim = teacher.setup.backbone.embed_dim
    if teacher.setup.role == "student" or teacher.setup.choice.settings.gives_logits:
        dim = teacher.class_vectors().shape[1]
    description = describe_store(
        provenance=teacher.features_provenance,
        preprocess=answering_teacher.preprocess,
        augment=augment,
        precision=optim.precision,
    )
    store = TeacherStore(
        setup.workspace.root / ".cache" / "teacher_store",
        description,
        digests={i: images.digests[i] for i in images.indices},
        dim=dim,
        n_views=n_stored_views(recipe, setup.choice),
    )
    opens = None
    if isinstance(teacher, RunModel):  # another process can open it
        run, root = teacher.run.path.absolute(), setup.workspace.root.absolute()
        opens = partial(_open_prepared, setup.loaded, run, setup.classes.names, root)
    return StoreFiller(
        store=store,
        teacher=answering_teacher,
        source=images.source,
        augment=augment,
        precision=optim.precision,
        n_workers=optim.n_workers,
        opens=opens,
        workers=setup.workspace.workers,
        group=setup.workspace.group,
    )


def _open_prepared(
    loaded: LoadedRecipe, run: Path, names: Sequence[str], root: Path, resources: WorkerResources
) -> ImageModel:
    workspace = workspace_of(root, resources)
    teacher = load_run(RunFolder.open(run), workspace, names=names)
    student = set_up_role(loaded, "student", workspace)
    return teacher if student.choice.is_solved else teacher_for(student.backbone, teacher)


def workspace_of(root: Path, resources: WorkerResources) -> Workspace:
    """A worker's own workspace, on its share of the machine."""
    torch.set_num_threads(resources.n_cores)
    return Workspace(root, choose_device(resources.device))
