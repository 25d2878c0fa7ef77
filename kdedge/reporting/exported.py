"""The exported files of a run: the file to ship, the commands for it, and a comparison of all."""

from __future__ import annotations

import shlex
from dataclasses import replace

from kdedge.artifacts import model_card
from kdedge.artifacts.ship import predict_flags
from kdedge.records.tables import Table, decimals, digits
from kdedge.reporting.blocks import Block, Note, Text
from kdedge.reporting.run_records import RunRecords
from kdedge.runtime.artifact import Artifact
from kdedge.runtime.cpu_choice import CpuChoice

_MAX_LAYERS = 10


def ship_blocks(records: RunRecords) -> list[Block]:
    """Which file to put on the device, its cost, and the commands."""
    run = shlex.quote(str(records.run.path))
    artifact = records.artifact
    if artifact is None:
        line = f"# no file was exported yet\nkdedge export {run} --cpu"
        return [Text("", line)] if records.run.role == "student" else []
    folder = shlex.quote(str(artifact.path))
    shipped = records.ship
    if shipped is None:
        line = f"# every exported file missed its gate: see the table below\nkdedge show {run}"
        return [Text("", line)]
    file, time = shipped.file, shipped.time
    rows = [["file", f"{file.name} ({file.precision}), {digits(file.n_bytes, 1e6)} MB"]]
    rows.append(["gate", file.gate])
    parity = file.parity
    if parity is not None:
        agrees = f"{decimals(parity.agreement_percent)} % of {parity.n_images:,} images"
        whose = f"the {records.run.role}'s"
        rows.append(["agreement", f"{whose} class on {agrees}"])
        if parity.accuracy_percent is not None:
            reference = decimals(parity.reference_accuracy_percent)
            accuracy = f"{decimals(parity.accuracy_percent)} %; {whose} on the same: {reference} %"
            rows.append(["accuracy", accuracy])
    latency = f"not measured: kdedge export {folder} --cpu"
    if time is not None:
        images = "one image" if time.batch == 1 else f"{time.batch} images"
        latency = f"{digits(time.p50_ms)} ms for {images}, on {shipped.machine}"
        latency += f"; in doubt: {time.doubt}" if time.doubt else ""
    rows.append(["latency", latency])
    rows += _in_float32(artifact, shipped.choice)
    commands = [
        "# to the device, which needs no torch; the folder's README.md says how to run it\n"
        "# (the other model files in it may be left out)",
        f"scp -r {folder} DEVICE:model",
    ]
    if file.target == "onnx":
        commands.append(
            "python model/example.py IMAGE  # needs numpy, pillow and onnxruntime alone"
        )
    options = " ".join(["IMAGES", *predict_flags(artifact, file)])
    commands.insert(0, f"# here\nkdedge predict {folder} {options} --format csv")
    commands.append(f"kdedge predict model {options}  # needs kdedge's wheel")
    return [Table("", [], rows, align="l"), Text("", "\n".join(commands))]


def _in_float32(artifact: Artifact, choice: CpuChoice | None) -> list[list[str]]:
    """What the float32 ONNX file costs, where the fastest on a CPU is another."""
    exact = None if choice is None else choice.candidates[0]
    if choice is None or exact is None or exact.time is None or exact.file == choice.file:
        return []
    file = artifact.file(exact.file)
    facts = f"{file.name}, {digits(file.n_bytes, 1e6)} MB, {digits(exact.time.p50_ms)} ms"
    if file.parity is not None and file.parity.accuracy_percent is not None:
        facts += f", accuracy {decimals(file.parity.accuracy_percent)} %"
    return [["in float32", facts]]


def exported_blocks(records: RunRecords) -> list[Block]:
    """The comparisons of all files, and the searches for the fastest and the INT8 file."""
    artifact = records.artifact
    if artifact is None:
        return []
    blocks: list[Block] = [compared_files(artifact)]
    for choice in records.choices:
        title = f"Fastest on {choice.machine}: {choice.file}"
        blocks += [replace(choice.table, title=title), Note(choice.notes)]
    return [*blocks, *_search_blocks(artifact)]


def compared_files(artifact: Artifact) -> Table:
    """The exported files and their comparisons with the float32 model."""
    parities = [file.parity for file in artifact.files if file.parity is not None]
    compared = sorted({f"{p.n_images:,} images ({p.images})" for p in parities})
    lowest, max_drop = artifact.gates.agreement, artifact.gates.max_drop
    gates = [f"agreement of {name} at least {least:g} %" for name, least in lowest.items()]
    gates.append(f"drop at most {max_drop:g} points, in whole images")
    caption = (
        f"Measured at export on {', '.join(compared) or 'no images yet'}. Agreement: share of the"
        " images with the float32 model's class. Drop: accuracy lost, in points; below 0, it is"
        " higher. Distance: mean difference of the scores, from 0 to 1."
        f" Gates: {', '.join(gates)}."
    )
    if artifact.temperature is not None:
        fitted = artifact.temperature
        caption += f" Scores have the temperature {fitted.value:.4g}, fitted to {fitted.images}."
    if artifact.none_of_these is not None:
        none = artifact.none_of_these
        caption += f' "None" keeps {none.share_percent:g} % of images like {none.images}.'
    title = "Exported files compared with the float32 model"
    return replace(model_card.files_table(artifact), title=title, caption=caption)


def _search_blocks(artifact: Artifact) -> list[Block]:
    """Steps of the search for an INT8 file, and the costliest layers; empty without a search."""
    searches = [file.built_with["search"] for file in artifact.files if "search" in file.built_with]
    if not searches:
        return []
    search = searches[0]
    steps = [
        [
            step["step"],
            f"{step['agreement_percent']:.2f}",
            f"{step['expected_percent']:.2f}",
            f"{step['logit_error_percent']:.2f}",
            "yes" if step["kept"] else "no",
            f"{step['at_seconds']:.0f}",
        ]
        for step in search["steps"]
    ]
    steps_caption = (
        f"Percent, on {search['n_held_out']:,} held-out images; wanted:"
        f" {search['target_agreement_percent']:g} % expected on others. Ended after"
        f" {search['seconds']:.0f} s: {search['ended']}. Layers in float:"
        f" {', '.join(search['in_float']) or 'none'}."
    )
    header = ["step", "agreement", "expected on others", "error of logits", "kept", "after s"]
    key = "sensitivity"
    caption = "Percentage points of the logits' error that each layer in float takes away."
    if all(layer[key] is None for layer in search["layers"].values()):
        key = "error_percent"
        caption = "Error of each layer's output by itself, percent of it."
    layers = {name: x[key] for name, x in search["layers"].items() if x[key] is not None}
    most = sorted(layers, key=lambda name: -layers[name])[:_MAX_LAYERS]
    rows = [[name, decimals(layers[name])] for name in most]
    return [
        Table("How the INT8 file was found", header, steps, steps_caption),
        Table("The layers that INT8 costs most", ["layer", "%"], rows, caption),
    ]
