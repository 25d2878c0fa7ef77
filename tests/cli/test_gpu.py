"""Training, evaluation and export on a GPU that is not there: as on the CPU."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from kdedge.config.load import load_recipe, parse_overrides
from kdedge.errors import DivergedError
from kdedge.runs.folder import RunFolder
from kdedge.setup.device import choose_device
from kdedge.setup.workspace import Workspace
from kdedge.training.baseline import baseline_job
from kdedge.training.find_teacher import open_teacher
from kdedge.training.job.job import Job, batches_of
from kdedge.training.loop.step import Stepper
from kdedge.training.student import student_job, student_parts, teaching_of

Run = Callable[..., Any]
OPTIM = "optim={epochs: 2, batch_size: 8, lr: 0.0001, warmup_epochs: 0, precision: %s}"
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
STUDENTS = {
    "promptkd": "student.settings={prompt_depth: 2}",
    "promptkd, stored": "student={weights: student.pt, views: 1, settings: {prompt_depth: 2}}",
    "promptkd, full": "student.settings={tune: full}",
    "promptkd, lora": "student.settings={tune: lora}",
    "promptkd, labels": "student.settings={prompt_depth: 2, labeled_weight: 1}",
    "promptkd, timm": "student={backbone: timm/test_resnet, weights: timm.safetensors,"
    " settings: {tune: full}}",
}
# Autocast has other lists of operations on a GPU than on a CPU
TOLERANCE = {"fp32": 1e-3, "bf16": 0.1, "fp16": 0.1, "fp16-unscaled": 0.02}
FEW = ("coop", "promptsrc", "promptkd")
CASES = [
    *((name, precision) for name in (*BASELINES, *STUDENTS) for precision in ("fp32", "fp16")),
    *((name, precision) for name in FEW for precision in ("bf16", "fp16-unscaled")),
]


@pytest.fixture
def trained(trained: Path) -> Path:
    """The trained project, with weights of a student that is no CLIP."""
    torch.manual_seed(0)
    save_file(timm.create_model("test_resnet").state_dict(), trained / "timm.safetensors")
    return trained


def command(name: str, precision: str) -> list[str]:
    if name in BASELINES:
        first = ["train", "r.yaml", "--method", name]
        texts = [f"baseline.settings={BASELINES[name]}", f"baseline.{OPTIM % precision}"]
    else:
        first = ["distill", "r.yaml"]
        texts = ["teacher.run=runs/tiny/01", STUDENTS[name], f"student.{OPTIM % precision}"]
    return [*first, *(part for text in texts for part in ("--set", text))]


def figures(run: Path) -> list[list[float]]:
    """Losses and lengths of gradients, as far as they were logged."""
    text = "".join(file.read_text() for file in sorted(run.rglob("metrics.jsonl")))
    steps = [json.loads(line) for line in text.splitlines() if '"kind"' not in line]
    # The length is null where fp16 overflows and skips a step
    return [[step["loss"], step["grad_norm"] or 0.0] for step in steps]


def forget_the_last_epoch(run: Path, weights: Path) -> None:
    """Makes a finished run what it was when its last epoch began."""
    record = json.loads((run / "provenance.json").read_text())
    (run / "provenance.json").write_text(json.dumps({**record, "status": "running"}))
    weights.unlink()
    max(run.rglob("checkpoints/e*.safetensors")).unlink()


@pytest.mark.parametrize(("name", "precision"), CASES)
def test_a_gpu_trains_resumes_and_measures_as_the_cpu_does(
    kdedge: Run, trained: Path, gpu: Any, name: str, precision: str
) -> None:
    def train(device: str, *more: str) -> tuple[Path, dict[str, Any]]:
        options = ("--device", device, "--runs", device, "--json", *more)
        done = kdedge(*command(name, precision), *options)
        assert done.code == 0, done.err
        (record,) = [x for x in json.loads(done.out).values() if x["kind"] != "teacher"]
        return Path(record["path"]), record["evaluation"]

    by_cpu, expected = train("cpu")
    with gpu():
        by_gpu, actual = train("cuda")
        weights = next(x for x in by_gpu.iterdir() if x.stem in ("student", "baseline"))
        whole = weights.read_bytes()
        forget_the_last_epoch(by_gpu, weights)
        assert train("cuda", "--resume") == (by_gpu, actual)
    assert weights.read_bytes() == whole
    # Batch norms of an encoder over eight images enlarge what rounding differs by
    tolerance = TOLERANCE[precision] * (10 if "timm" in name else 1)
    for ours, theirs in zip(figures(by_gpu), figures(by_cpu), strict=True):
        assert ours == pytest.approx(theirs, rel=tolerance)
    if precision == "fp32":
        for model, accuracies in expected.items():
            assert actual[model]["per_class"] == accuracies["per_class"]


def make_job(name: str, precision: str) -> Job:
    """A training on the GPU, with steps of two images."""
    arguments = command(name, precision)
    role = "baseline" if name in BASELINES else "student"
    texts = [*arguments[arguments.index("--set") + 1 :: 2], f"{role}.optim.batch_size=2"]
    workspace = Workspace(Path("runs"), choose_device("cuda"))
    loaded = load_recipe("r.yaml", parse_overrides(texts))
    if name in BASELINES:
        return baseline_job(loaded, workspace, name)
    parts = student_parts(loaded, workspace)
    known = open_teacher(RunFolder.open(Path("runs/tiny/01")), parts)
    return student_job(parts, teaching_of(known, parts))


BY_STEPS = [name for name in (*BASELINES, *STUDENTS) if name not in ("pseudo_label", "upl")]


@pytest.mark.parametrize(
    ("name", "precision"), [*((name, "fp32") for name in BY_STEPS), ("promptkd", "fp16")]
)
def test_a_step_waits_for_the_gpu_once(trained: Path, gpu: Any, name: str, precision: str) -> None:
    with gpu() as simulated:
        if simulated is None:
            pytest.skip("a real GPU does not count")
        job = make_job(name, precision)
        job.method.module.train()
        stepper = Stepper(job.method, job.choice.optim, job.device)
        stored = None if job.filler is None else lambda positions, view: torch.ones(2, 40)
        batches = batches_of(job, 1, 0, features=stored)
        for _ in range(3):  # of LaFTer the first learns texts, and the second finds them learned
            simulated.waits.clear()
            simulated.pageable.clear()
            stepper.take(next(batches), lr=1e-4, diverged=DivergedError)
    assert simulated.waits.total() == 1, simulated.waits
    assert not simulated.pageable


@pytest.mark.parametrize("name", ["tiny/01", "tiny/02"])
def test_a_run_is_folded_on_a_gpu_to_the_file_that_the_cpu_writes(
    kdedge: Run, trained: Path, gpu: Any, name: str
) -> None:
    pytest.importorskip("onnxruntime")
    assert kdedge("export", name, "--device", "cpu", "--output", "cpu").code == 0
    with gpu():
        done = kdedge("export", name, "--device", "cuda", "--output", "cuda")
        assert done.code == 0, done.err
        measured = json.loads(kdedge("eval", name, "--device", "cuda", "--json").out)
    assert (trained / "cuda/model.onnx").read_bytes() == (trained / "cpu/model.onnx").read_bytes()
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


def test_check_and_bench_tell_of_the_gpus_memory(
    kdedge: Run, trained: Path, gpu: Any, quick_machine: object
) -> None:
    quick = ("--seconds", "0.01", "--calls", "3", "--batch", "1", "--format", "json")
    with gpu():
        checked = kdedge("check", "r.yaml", "--device", "cuda")
        assert " GiB of 8.0 GiB at the peak on cuda\n" in checked.out, checked.err
        done = kdedge("bench", "tiny/02", "--device", "cuda", *quick, obj=quick_machine)
    assert done.code == 0, done.err
    rows = json.loads(done.out)["rows"]
    assert {row["device"] for row in rows} == {"GPU"}
    for row in rows:
        assert row["memory_bytes"] >= 1 << 30
        assert {x["inputs"] for x in row["measurements"]} == {"on device", "copied"}


def test_the_hour_with_a_gpu_runs_and_goes_on_after_what_is_done(
    kdedge: Run, project: Path, gpu: Any, gpu_hour: Any, quick_machine: object
) -> None:
    def run(arguments: list[str]) -> tuple[int, str, str]:
        done = kdedge(*arguments, obj=quick_machine)
        return done.code, done.out, done.err

    planned = gpu_hour.steps("r.yaml", "cuda", "--seconds", "0.01", "--calls", "3", "--batch", "1")
    assert gpu_hour.rows(project).count("not measured") == 5
    with gpu():
        gpu_hour.measure(planned, project, run)
    codes = {x.stem: json.loads(x.read_text())["code"] for x in project.glob("steps/*.json")}
    assert codes.keys() == planned.keys()
    assert {name for name, code in codes.items() if code} <= {"engines"}  # need TensorRT
    rows = gpu_hour.rows(project)
    assert "not measured" not in rows
    assert "| PromptKD | cached | PyTorch |" in rows
    asked: list[Any] = []
    gpu_hour.measure(planned, project, lambda arguments: asked.append(arguments) or (1, "", ""))
    assert all(arguments[0] == "export" for arguments in asked)


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
