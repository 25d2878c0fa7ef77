"""Training, evaluation and export on a GPU that is not there: as on the CPU."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from kdedge.config.load import load_recipe, parse_overrides
from kdedge.distributed import SINGLE_PROCESS
from kdedge.setup.workspace import Workspace, set_up_device
from kdedge.training.job import Job
from kdedge.training.loop.step import Stepper
from kdedge.training.student import student_job
from kdedge.training.teacher import baseline_job, with_baseline

Run = Callable[..., Any]
OPTIM = "optim={epochs: 2, batch_size: 8, lr: %s, warmup_epochs: 0, precision: %s}"
# The usual weight of 1000 overflows in fp16, which then skips steps that float32 takes
LIGHT = "student.settings.losses={kl: {weight: 1}}"
PROMPTS = "prompt_depth_text: 2, prompt_depth_vision: 2"
BASELINES = {
    "atprompt": f"{{{PROMPTS}, attributes: [shape]}}",
    "clip_pr": "{}",
    "cocoop": "{n_ctx: 2}",
    "coop": "{n_ctx: 3}",
    "ivlp": f"{{{PROMPTS}}}",
    "lafter": "{n_text_steps: 3}",
    "maple": "{prompt_depth: 2}",
    "promptsrc": f"{{{PROMPTS}}}",
    "pseudo_label": "{rounds: 2, per_class: 4, coop: {n_ctx: 3}}",
    "upl": "{n_runs: 2}",
    "vpt": "{prompt_depth: 2}",
}
MORE = {
    "coop, with a data worker": ("baseline.optim.n_workers=1",),
    "coop, with validation": (
        "baseline.optim.selection=validation",
        "data.validation={folder: labeled}",
    ),
    "promptkd, lora": ("student.optim.micro_batch=4",),  # its chunks are computed twice
}
STUDENTS = {
    "promptkd": "student.settings={prompt_depth: 2}",
    "promptkd, stored": "student={weights: student.pt, views: 1, settings: {prompt_depth: 2}}",
    "promptkd, full": "student.settings={tune: full}",
    "promptkd, lora": "student.settings={tune: lora}",
    "promptkd, labels": "student.settings={prompt_depth: 2, labeled_weight: 0.001}",
    "promptkd, file": "student.settings={class_vectors: student, prompt_depth: 2,"
    " prompt_depth_text: 2}",
    "promptkd, timm": "student={backbone: timm/test_resnet, weights: timm.safetensors,"
    " settings: {tune: full}}",
}
# From the CPU's float32
TOLERANCE = {"fp32": 1e-3, "bf16": 0.1, "fp16": 0.1, "fp16-unscaled": 0.1}
FEW = ("coop", "promptsrc", "promptkd")
CASES = [
    *((name, "fp32") for name in (*BASELINES, *STUDENTS)),
    *((name, precision) for name in FEW for precision in ("fp16", "bf16", "fp16-unscaled")),
    *((name, "fp32") for name in MORE if name not in STUDENTS),
]


@pytest.fixture
def trained(trained: Path) -> Path:
    """The trained project, with weights of a student that is no CLIP, and a file that teaches."""
    torch.manual_seed(0)
    rows = [f"{x.name},0.7,0.1,0.1,0.1" for x in trained.glob("pool/*")]
    header = ",".join(("image", *(trained / "classes.txt").read_text().splitlines()))
    (trained / "pool.csv").write_text("\n".join([header, *rows]))
    save_file(timm.create_model("test_resnet").state_dict(), trained / "timm.safetensors")
    return trained


def command(name: str, precision: str) -> list[str]:
    method = name.partition(",")[0]
    if method in BASELINES:
        first = ["train", "r.yaml", "--method", method]
        texts = [f"baseline.settings={BASELINES[method]}", f"baseline.{OPTIM % (1e-4, precision)}"]
    else:
        first = ["distill", "r.yaml"]
        optim = OPTIM % (0.001 if "timm" in name else 0.1, precision)
        teacher = "teacher={file: pool.csv}" if "file" in name else "teacher.run=runs/tiny/01"
        texts = [teacher, STUDENTS[name], LIGHT, f"student.{optim}"]
    return [*first, *(part for text in (*texts, *MORE.get(name, ())) for part in ("--set", text))]


def figures(run: Path) -> list[tuple[float, float]]:
    """Losses and lengths of gradients, as far as they were logged."""
    text = "".join(file.read_text() for file in sorted(run.rglob("metrics.jsonl")))
    steps = [json.loads(line) for line in text.splitlines() if '"kind"' not in line]
    return [(step["loss"], step["grad_norm"]) for step in steps]


def forget_the_last_epoch(run: Path, weights: Path) -> None:
    """Makes a finished run what it was when its last epoch began."""
    record = json.loads((run / "provenance.json").read_text())
    (run / "provenance.json").write_text(json.dumps({**record, "status": "running"}))
    weights.unlink()
    max(run.rglob("checkpoints/e*.safetensors")).unlink()


@pytest.fixture(scope="module")
def on_cpu() -> dict[str, Any]:
    """Name -> figures and accuracies of its training on the CPU, in float32."""
    return {}


@pytest.mark.parametrize(("name", "precision"), CASES)
def test_a_gpu_trains_resumes_and_measures_as_the_cpu_does(
    kdedge: Run, trained: Path, gpu: Any, on_cpu: dict[str, Any], name: str, precision: str
) -> None:
    def train(device: str, precision: str, *more: str) -> tuple[Path, dict[str, Any]]:
        options = ("--device", device, "--runs", device, "--json", *more)
        done = kdedge(*command(name, precision), *options)
        assert done.code == 0, done.err
        records = [x for x in json.loads(done.out).values() if x is not None]
        (record,) = [x for x in records if x["role"] != "teacher"]
        return Path(record["path"]), record["evaluation"]

    if name in STUDENTS:  # two steps an epoch are enough
        for image in trained.glob("pool/*_[4-9].jpg"):
            image.unlink()
    if name not in on_cpu:
        by_cpu, accuracies = train("cpu", "fp32")
        on_cpu[name] = figures(by_cpu), accuracies
    steps, expected = on_cpu[name]
    with gpu() as simulated:
        by_gpu, actual = train("cuda", precision)
        weights = next(x for x in by_gpu.iterdir() if x.stem in ("student", "baseline"))
        whole = weights.read_bytes()
        # fp16 has a scale of its own to go on with; tests on the CPU resume every method
        if name in MORE or (precision == "fp16" and name in FEW):
            forget_the_last_epoch(by_gpu, weights)
            assert train("cuda", precision, "--resume")[0] == by_gpu
    # A real GPU adds up in an order of its own
    assert simulated is None or weights.read_bytes() == whole
    # Batch norms of an encoder over eight images enlarge what rounding differs by
    tolerance = TOLERANCE[precision] * (10 if "timm" in name else 1)
    for ours, theirs in zip(figures(by_gpu), steps, strict=True):
        assert ours == pytest.approx(theirs, rel=tolerance)
    if precision == "fp32":
        for model, accuracies in expected.items():
            assert actual[model]["per_class"] == accuracies["per_class"]


def make_job(name: str, precision: str) -> Job:
    """A training on the GPU, with steps of two images."""
    arguments = command(name, precision)
    role = "baseline" if name in BASELINES else "student"
    texts = [*arguments[arguments.index("--set") + 1 :: 2], f"{role}.optim.batch_size=2"]
    workspace = Workspace(Path("runs"), set_up_device("cuda"))
    loaded = load_recipe("r.yaml", parse_overrides(texts))
    if name in BASELINES:
        job = baseline_job(with_baseline(loaded, name), workspace)
        own_training = job.setup.settings.own_training
        return job if own_training is None else own_training.trial(job)
    return student_job(loaded, workspace)[0]


@pytest.mark.parametrize(
    ("name", "precision"),
    [*((name, "fp16") for name in (*BASELINES, *STUDENTS)), ("promptkd", "fp32")],
)
def test_a_step_waits_for_the_gpu_once(trained: Path, gpu: Any, name: str, precision: str) -> None:
    with gpu() as simulated:
        if simulated is None:
            pytest.skip("a real GPU does not count")
        job = make_job(name, precision)
        job.method.module.train()
        stepper = Stepper(job.method, job.setup.optim, job.setup.device, SINGLE_PROCESS)
        stored = None if job.filler is None else lambda positions, view: torch.ones(2, 40)
        batches = job.batches(1, 0, features=stored)
        for _ in range(3):  # of LaFTer the first learns texts, and the second finds them learned
            simulated.waits.clear()
            simulated.pageable.clear()
            stepper.take(next(batches), lr=1e-4, place="a step")
    assert simulated.waits.total() == 1, simulated.waits
    assert not simulated.pageable


@pytest.mark.parametrize("name", ["tiny/01", "tiny/02"])
def test_a_run_is_folded_on_a_gpu_to_the_file_that_the_cpu_writes(
    kdedge: Run, trained: Path, gpu: Any, name: str
) -> None:
    pytest.importorskip("onnxruntime")
    export = ("export", name, "--set", "export.batch=1")  # is traced sooner
    assert kdedge(*export, "--device", "cpu", "--output", "cpu").code == 0
    with gpu() as simulated:
        kdedge(*export, "--device", "cuda", "--output", "cuda").succeeds()
        measured = json.loads(kdedge("eval", name, "--device", "cuda", "--json").out)
    files = [(trained / device / "model.onnx").read_bytes() for device in ("cuda", "cpu")]
    assert simulated is None or files[0] == files[1]
    assert measured["per_class"] == json.loads(kdedge("eval", name, "--json").out)["per_class"]


def test_a_closed_form_is_solved_on_a_gpu(kdedge: Run, project: Path, gpu: Any) -> None:
    ridge = "{method: ridge, weights: %s.pt}"
    texts = ["data.split=all", *(f"{x}={ridge % x}" for x in ("teacher", "student"))]
    command = ["distill", "r.yaml", "--json", *(part for text in texts for part in ("--set", text))]
    expected = json.loads(kdedge(*command, "--device", "cpu", "--runs", "cpu").out)
    with gpu():
        done = kdedge(*command, "--device", "cuda", "--runs", "cuda")
    assert done.code == 0, done.err
    actual = json.loads(done.out)
    for kind in ("teacher", "student"):
        measured = [record[kind]["evaluation"][kind]["per_class"] for record in (actual, expected)]
        assert measured[0] == measured[1]
    lost = [x["student"]["summary"]["closed_form"]["divergence"] for x in (actual, expected)]
    assert lost[0] == pytest.approx(lost[1], rel=1e-3)


def test_public_weights_are_imported_on_a_gpu(
    kdedge: Run, trained: Path, gpu: Any, public_layout: Any
) -> None:
    teacher = ("teacher.pt", "runs/tiny/01/teacher.safetensors")
    state = public_layout.promptsrc_checkpoint(*map(trained.joinpath, teacher), 2)
    public_layout.save_public(trained / "teacher.pth.tar", state)
    student = ("student.pt", "runs/tiny/02/student.safetensors")
    state = public_layout.promptkd_checkpoint(*map(trained.joinpath, student))
    public_layout.save_public(trained / "student.pth.tar", state)
    of_teacher = ("--as", "promptsrc", "--weights", "teacher.pt", "--classes", "classes.txt")
    of_student = ("--as", "promptkd", "--weights", "student.pt", "--teacher", "tiny/01")
    test = ("--set", "data.test.folder=test", "--set", "data.split=base-to-novel", "--json")
    with gpu():
        for name, options in {"teacher": (*of_teacher, "--exact"), "student": of_student}.items():
            done = kdedge("import", f"{name}.pth.tar", *options, "--name", name, "--device", "cuda")
            assert done.code == 0, done.err
    for ours, theirs in {"tiny/01": "teacher/01", "tiny/02": "student/01"}.items():
        measured = [json.loads(kdedge("eval", run, *test).out) for run in (ours, theirs)]
        assert measured[0]["per_class"] == measured[1]["per_class"]


@pytest.mark.slow
def test_the_hour_with_a_gpu_runs_and_goes_on_after_what_is_done(
    kdedge: Run, project: Path, gpu: Any, load_module: Any, quick_machine: None
) -> None:
    def run(arguments: list[str]) -> tuple[int, str, str]:
        done = kdedge(*arguments)
        return done.code, done.out, done.err

    gpu_hour = load_module("hour", Path(__file__).parents[2] / "benchmarks/gpu")
    recipe = Path("r.yaml").read_text()
    Path("r.yaml").write_text(
        recipe.replace("epochs: 2, batch_size: 4", "epochs: 1, batch_size: 8")
    )
    planned = gpu_hour.steps(
        "r.yaml", "cuda", "--seconds", "0.01", "--calls", "3", "--batch", "1", "--against", "none"
    )
    for name in ("trt-int8", "torch-trt"):  # trt-fp16 is enough to see one fail
        del planned[name], planned[f"bench-{name}"]
    del planned["bf16"], planned["fp16"]  # fp32 is enough to see a training
    assert gpu_hour.rows(project).count("not measured") == 10
    with gpu() as simulated:
        gpu_hour.measure(planned, project, run)
    records = {x.stem: json.loads(x.read_text()) for x in project.glob("steps/*.json")}
    assert records.keys() == planned.keys()
    failed = {name: record["error"] for name, record in records.items() if record["code"]}
    assert failed.keys() <= {"trt-fp16", "bench-trt-fp16"}, failed
    assert re.search(r" GiB of [\d.]+ GiB at the peak on cuda", str(records["check"]["result"]))
    for row in records["bench"]["result"]["rows"]:
        assert row["device"] == "GPU"
        assert row["memory_bytes"] >= (1 if simulated is None else 1 << 30)
        assert row["gmacs_image"] > 0
        assert {x["inputs"] for x in row["measurements"]} == {"on device", "copied"}
    rows = gpu_hour.rows(project)
    assert rows.count("not measured") == 5 + sum(name.startswith("bench") for name in failed)
    assert "| student, PromptKD | cached | PyTorch |" in rows
    asked: list[Any] = []
    gpu_hour.measure(planned, project, lambda arguments: asked.append(arguments) or (1, "", ""))
    assert asked == [planned[name] for name in planned if name in failed]


def test_what_a_gpu_refuses_is_refused(gpu: Any) -> None:
    with gpu() as simulated:
        if simulated is None:
            pytest.skip("a real GPU does not count")
        on_gpu, on_cpu = torch.ones(3, device="cuda"), torch.ones(3)
        with pytest.raises(RuntimeError, match="at least two devices"):
            on_gpu + on_cpu
        with pytest.raises(RuntimeError, match="at least two devices"):
            on_cpu.add_(on_gpu[0])
        with pytest.raises(TypeError, match="to numpy"):
            on_gpu.numpy()
        with pytest.raises(RuntimeError, match="'cuda' device type for generator"):
            torch.randn(3, device="cuda", generator=torch.Generator())
        assert not simulated.waits + simulated.pageable
        on_cpu.to("cuda", non_blocking=True)
        assert (simulated.waits.total(), simulated.pageable.total()) == (0, 1)
        on_cpu.pin_memory()[1:].to("cuda", non_blocking=True)
        assert (simulated.waits.total(), simulated.pageable.total()) == (0, 1)
        assert bool((on_gpu * torch.tensor(2.0))[torch.tensor([0])] == 2)
        assert simulated.waits.total() == 1
    assert not torch.cuda.is_available()
