"""The exported files of a run: which one to ship and how, and how the others compare."""

from __future__ import annotations

from kdedge.deploy import model_card
from kdedge.reporting.blocks import Block, Note, Text
from kdedge.reporting.records import RunRecords
from kdedge.runs.headline import fastest_file
from kdedge.runtime.artifact import Artifact, ModelFile
from kdedge.runtime.cpu_choice import CpuChoice, readable_choices
from kdedge.speed_results import SpeedResult
from kdedge.tables import Grid, figure, percent

_MOST_LAYERS = 10


def file_to_ship(
    artifact: Artifact, speed: SpeedResult | None
) -> tuple[ModelFile, str | None] | None:
    """The file to put on the device, and its latency in words; None if every file missed its gate.

    It is the fastest as `kdedge export --cpu` measured last, else as `kdedge bench` did; without
    a measurement the smallest ONNX file that is not for GPUs, where engines are built from it.
    """
    files = {file.name: file for file in artifact.files if file.gate != "missed"}
    for choice in sorted(readable_choices(artifact), key=lambda one: one.measured_at, reverse=True):
        if choice.file in files and choice.holds_for(files[choice.file]):
            return files[choice.file], _latency(choice)
    fastest = None if speed is None else fastest_file(speed)
    if speed is not None and fastest is not None and fastest[0] in files:
        return files[fastest[0]], f"{fastest[1]} on {speed.device['cpu']}"
    onnx = [one for one in files.values() if one.target == "onnx" and one.device != "gpu"]
    onnx = onnx or list(files.values())
    if not onnx:
        return None
    smallest = min(onnx, key=lambda file: file.n_bytes)
    times = [row.alone(1) for row in speed.rows if row.model == smallest.name] if speed else []
    doubted = [
        f"{figure(time.p50_ms)} ms, in doubt: {time.doubt}" for time in times if time and time.doubt
    ]
    return smallest, next(iter(doubted), None)


def _latency(choice: CpuChoice) -> str | None:
    (time,) = (one.time for one in choice.candidates if choice.is_chosen(one))
    if time is None:
        return None
    doubt = f"; in doubt: {time.doubt}" if time.doubt else ""
    images = "image" if choice.batch == 1 else f"{choice.batch} images"
    return f"{figure(time.p50_ms)} ms for one {images}, on {choice.machine}{doubt}"


def ship_blocks(records: RunRecords) -> list[Block]:
    """Which file to put on the device, its cost, and the commands."""
    run, artifact = records.run.path, records.artifact
    if artifact is None:
        line = f"# no file was exported yet\nkdedge export {run} --int8"
        return [Text("", line)] if run and records.run.kind == "student" else []
    found = file_to_ship(artifact, records.speed)
    if found is None:
        line = f"# every exported file missed its gate: see the table below\nkdedge show {run}"
        return [Text("", line)]
    file, latency = found
    rows = [["file", f"{file.name} ({file.precision}), {figure(file.n_bytes, 1e6)} MB"]]
    parity = file.parity
    if parity is not None:
        agrees = f"{percent(parity.agreement_percent)} % of {parity.n_images:,} images"
        rows.append(["agreement", f"the student's class on {agrees}"])
        if parity.accuracy_percent is not None:
            theirs = percent(parity.reference_accuracy_percent)
            ours = f"{percent(parity.accuracy_percent)} %; the student's on the same: {theirs} %"
            rows.append(["accuracy", ours])
    rows.append(["latency", latency or f"not measured: kdedge export {artifact.path} --cpu"])
    commands = (
        f"# here\nkdedge predict {artifact.path} IMAGES --format csv\n"
        f"# to the device, which needs no torch; the folder's README.md says how to run it\n"
        f"scp -r {artifact.path} DEVICE:model\n"
        f"kdedge predict model IMAGES --precision {file.precision}"
    )
    return [Grid("", [], rows, n_text=2), Text("", commands)]


def exported_blocks(records: RunRecords) -> list[Block]:
    """The comparisons of all files, and how the fastest and the INT8 file were found."""
    artifact = records.artifact
    if artifact is None:
        return []
    blocks: list[Block] = [files_table(artifact)]
    for choice in readable_choices(artifact):
        title = f"Fastest on {choice.machine}: {choice.file}"
        header, rows = choice.table  # its last column is a sentence
        blocks += [Grid(title, header, rows, n_text=len(header)), Note(choice.notes)]
    return [*blocks, *_search_blocks(artifact)]


def files_table(artifact: Artifact) -> Grid:
    """Exported files and their comparisons with the float32 model."""
    header, cells = model_card.files_table(artifact)
    compared = sorted({file.parity.images for file in artifact.files if file.parity})
    agreement, max_drop = artifact.gates.get("agreement") or {}, artifact.gates.get("max_drop")
    gates = [f"agreement of {name} at least {least:g} %" for name, least in agreement.items()]
    gates += [] if max_drop is None else [f"drop at most {max_drop:g} points"]
    caption = (
        f"In percent and points; measured at export on {', '.join(compared) or 'no images yet'}."
        f" Gates: {', '.join(gates) or 'none'}."
    )
    if artifact.temperature is not None:
        fitted = artifact.temperature
        caption += f" Scores have the temperature {fitted.value:.4g}, fitted to {fitted.images}."
    if artifact.none_of_these is not None:
        none = artifact.none_of_these
        caption += f' "None" keeps {none.share_percent:g} % of images like {none.images}.'
    return Grid("Exported files compared with the float32 model", header, cells, caption, n_text=4)


def _search_blocks(artifact: Artifact) -> list[Block]:
    """Steps of the search of an INT8 file, and the layers that cost most; empty without one."""
    found = [file.built_with["search"] for file in artifact.files if "search" in file.built_with]
    if not found:
        return []
    search = found[0]
    steps = [
        [step["step"], f"{step['agreement_percent']:.2f}", f"{step['expected_percent']:.2f}",
         f"{step['logit_error_percent']:.2f}", "yes" if step["kept"] else "no",
         f"{step['at_seconds']:.0f}"]
        for step in search["steps"]
    ]  # fmt: skip
    what = (
        f"Percent, on {search['n_held_out']:,} held-out images; wanted:"
        f" {search['target_agreement_percent']:g} % expected on others. Ended after"
        f" {search['seconds']:.0f} s: {search['ended']}. Layers in float:"
        f" {', '.join(search['in_float']) or 'none'}."
    )
    header = ["step", "agreement", "expected on others", "error of logits", "kept", "at second"]
    measured = {key: value["sensitivity"] for key, value in search["layers"].items()}
    told = "Percentage points of the logits' error that each layer in float takes away."
    if not any(value is not None for value in measured.values()):
        measured = {key: value["error_percent"] for key, value in search["layers"].items()}
        told = "Error of each layer's output by itself, percent of the output."
    layers = [(name, value) for name, value in measured.items() if value is not None]
    layers.sort(key=lambda entry: -entry[1])
    rows = [[name, percent(value)] for name, value in layers[:_MOST_LAYERS]]
    return [
        Grid("How the INT8 file was found", header, steps, what),
        Grid("The layers that INT8 costs most", ["layer", "%"], rows, told),
    ]
