"""Writes an artifact's model card and an example script that runs it."""

from __future__ import annotations

import dataclasses
import re
from importlib.resources import files

from kdedge.artifacts.ship import file_to_ship, predict_flags
from kdedge.files import sha256_file, write_atomic
from kdedge.records.evaluation import assumed_shares
from kdedge.records.tables import Table, decimals
from kdedge.runtime.artifact import INPUT_NAME, Artifact
from kdedge.runtime.cpu_choice import readable_choices

CARD = "README.md"
EXAMPLE = "example.py"

_SPECIAL = re.compile(r"([\\`*_\[\]<>|~&])")


def write_model_card(artifact: Artifact) -> Artifact:
    """Writes the model card and the example; returns the artifact that lists them.

    Raises:
        ResourceError: a file cannot be written.
    """
    write_atomic(artifact.path / CARD, _card_text(artifact).encode())
    write_atomic(artifact.path / EXAMPLE, files("kdedge.artifacts").joinpath(EXAMPLE).read_bytes())
    return artifact.with_others(CARD, EXAMPLE)


def renew_model_card(artifact: Artifact) -> Artifact:
    """Writes the model card again, after files were added.

    A card that was changed by hand is kept, and an artifact that lists no card gets none.

    Returns:
        The artifact, saved with the card's hash.

    Raises:
        ResourceError: the card cannot be written.
    """
    card = artifact.path / CARD
    known = artifact.others.get(CARD)
    if known is None or (card.is_file() and sha256_file(card) != known):
        return artifact
    write_atomic(card, _card_text(artifact).encode())
    renewed = artifact.with_others(CARD)
    if renewed != artifact:
        renewed.save()
    return renewed


def _card_text(artifact: Artifact) -> str:
    record = artifact.input_record()
    names = artifact.class_names
    tensor = record["input"]
    preparation = record["preprocess"]
    size = preparation["size_px"]
    batch = f"1 to {artifact.max_batch}" if artifact.batch == "dynamic" else str(artifact.batch)
    low, high = tensor["values"]
    steps = "\n".join(f"{number}. {step}" for number, step in enumerate(preparation["steps"], 1))
    answer = "the largest one is the predicted class; they are no scores"
    if artifact.head == "scores":
        answer = "softmax over the classes gives the scores"
    classes = "\n".join(f"    {name}" for name in names)
    note = ""
    n_outputs = len(names)
    order = ", in the order of the classes below;"
    if artifact.open_classes is not None:
        n_outputs = artifact.open_classes.dim
        answer = _open_classes_text(artifact, answer)
        note = " with the classes of the export"
        order = "."
    shipped = file_to_ship(artifact, None)
    flags = [] if shipped is None else predict_flags(artifact, shipped.file)
    predict = " ".join(["kdedge predict FOLDER IMAGE", *flags])
    files = files_table(artifact)
    quoted = [[f"`{name}`", *cells] for name, *cells in files.rows]
    listed = dataclasses.replace(files, rows=quoted).as_markdown()
    only = artifact.provenance.get("predicts_only", "")
    if only:
        only = f"\n**It predicts {_plain(only)} for every image that it was compared on.**\n"
    fastest = ""
    for choice in readable_choices(artifact):
        machine = _plain(str(choice.machine))
        fastest += f"\n## Fastest on {machine}\n\n{choice.as_markdown()}\n"
    keys = ("run", "role", "method", "backbone", "seed", "trained_at", "kdedge")
    known = {key: artifact.provenance.get(key) for key in keys}
    facts = []
    for key, value in known.items():
        if value is not None:
            facts.append(f"- {key.replace('_', ' ')}: {_plain(str(value))}")
    made_from = "\n".join(facts)
    return f"""---
pipeline_tag: image-classification
tags: [onnx, kdedge]
---

# {_plain(artifact.name)}

An image classifier with {len(names)} classes, exported by kdedge. `artifact.json` has the same
facts in a form for programs.
{only}
## Run it

    {predict}    # needs kdedge's own wheel: PyPI's kdedge is another
    python {EXAMPLE} IMAGE    # needs NumPy, Pillow and ONNX Runtime

## Input
{_image_input_text(artifact)}
One tensor, `{INPUT_NAME}`: {tensor["dtype"]} [batch, 3, {size}, {size}], {tensor["channels"]},
values {low} to {high}; {batch} images per call. **Normalization is in the graph**: apply no mean
and no standard deviation.

{steps}

## Output

One tensor, `{artifact.output_name}`: float32 [batch, {n_outputs}]{order}
{answer}.
{_scores_text(artifact)}
## Files

Compared with the float32 model on real images{note}; agreement is the share of equal predictions,
distance the mean softmax distance (0-1).

{listed}
{fastest}
## Made from

{made_from}

## Classes

{classes}
"""


def _image_input_text(artifact: Artifact) -> str:
    """Describes the input of files with preprocessing; empty if there are no such files."""
    names = [f"`{file.name}`" for file in artifact.files if file.target == "onnx-image"]
    if not names:
        return ""
    return (
        f"\n{' and '.join(names)}: one image of any size, `image`: uint8 [height, width, 3], RGB.\n"
        "Resize, crop and scaling are in the graph. All other files:\n"
    )


def _open_classes_text(artifact: Artifact, answer: str) -> str:
    """Describes how features become logits, for an artifact with open classes."""
    assert artifact.open_classes is not None
    file = artifact.open_classes.file
    dim = artifact.open_classes.dim
    return (
        f"`logits = features @ matrix.T`; `{file}` has the matrix, float32"
        f" [{len(artifact.class_names)}, {dim}] in\nNumPy's format, one row for each of the classes"
        f" below, in their order; {answer}.\n`kdedge classes` adds and removes classes"
    )


def _scores_text(artifact: Artifact) -> str:
    """Describes the scores: their prior, their calibration, and the "none of these" limit."""
    text = ""
    fitted = artifact.temperature
    none = artifact.none_of_these
    prior = artifact.provenance.get("balance", {}).get("prior")
    if prior is not None:
        text += (
            "\nScores are in balance: what the model preferred some classes by was subtracted from"
            f" the logits, for\n{_plain(assumed_shares(prior))}.\n"
        )
    if fitted is not None:
        answers = "their labels" if fitted.fitted_to == "labels" else "the teacher"
        text += (
            f"\nScores are calibrated: the logits were divided by the temperature"
            f" {fitted.value:.4g}, which is\npart of the files. It was fitted to"
            f" {_plain(fitted.images)} and {answers}. ECE is"
            " the expected calibration\nerror of a file, before and with it.\n"
        )
    if none is not None:
        text += (
            f"\nAn image shows none of the classes if its score is below the file's"
            f" `none_below.limit` in `artifact.json`,\nwhich {none.share_percent:g} % of known"
            f" images reach; fitted to {_plain(none.images)}. The score is\n"
            f"`-min(((whitening @ output - means) ** 2).sum(axis=1))`, with the two arrays of"
            f" `{none.file}`.\n"
        )
    return text


def files_table(artifact: Artifact) -> Table:
    """Returns the table of model files and their comparison with the float32 model."""
    parities = [file.parity for file in artifact.files]
    keys = {"agreement %": "agreement_percent", "accuracy %": "accuracy_percent"}
    keys["drop"] = "accuracy_drop"
    if any(parity is not None and parity.ece_percent is not None for parity in parities):
        keys |= {"ECE before %": "ece_percent_before", "ECE %": "ece_percent"}
    rows = []
    for file, parity in zip(artifact.files, parities, strict=True):
        distance = None if parity is None else parity.mean_softmax_distance
        cells = [file.name, file.precision, file.device, file.gate, f"{file.n_bytes / 1e6:.1f}"]
        cells += [decimals(getattr(parity, key, None)) for key in keys.values()]
        rows.append([*cells, "-" if distance is None else f"{distance:.4f}"])
    header = ["file", "precision", "for", "gate", "MB", *keys, "distance"]
    return Table("", header, rows, align="llllr")


def _plain(text: str) -> str:
    """Escapes a text so that Markdown shows it unchanged, in one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))
