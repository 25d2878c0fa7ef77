"""The Open Inference Protocol, version 2: requests of tensors in JSON or with binary data.

Specification: https://github.com/kserve/open-inference-protocol (required HTTP API), and Triton's
`extension_binary_data.md` for binary data after the JSON, whose length is in the header
Inference-Header-Content-Length.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, ValidationError
from starlette.exceptions import HTTPException

from kdedge import __version__
from kdedge.runtime.artifact import INPUT_NAME, OUTPUT_NAME, Artifact
from kdedge.serving.model import ServedModel

LENGTH_HEADER = "Inference-Header-Content-Length"
# Name of an input of image files, BYTES [N], instead of pixels; only with binary data
FILES_NAME = "image_bytes"

SERVER = {"name": "kdedge", "version": __version__, "extensions": ["binary_tensor_data"]}

_VERSION = "1"
_MAX_FILES = 1024


class _InputParameters(BaseModel):
    binary_data_size: StrictInt | None = None


class _Input(BaseModel):
    name: str
    datatype: str
    shape: list[Annotated[StrictInt, Field(ge=0, lt=2**31)]] = Field(min_length=1, max_length=8)
    parameters: _InputParameters = _InputParameters()
    data: Any = None


class _OutputParameters(BaseModel):
    model_config = ConfigDict(extra="forbid")
    binary_data: StrictBool | None = None


class _Output(BaseModel):
    name: Literal["logits"]
    parameters: _OutputParameters = _OutputParameters()


class _Parameters(BaseModel):
    binary_data_output: StrictBool = False


class _Request(BaseModel):
    id: str | None = None
    inputs: list[_Input] = Field(min_length=1, max_length=1)
    outputs: list[_Output] = Field([], max_length=1)
    parameters: _Parameters = _Parameters()


@dataclass(frozen=True)
class InferRequest:
    """A parsed inference request.

    Attributes:
        id: the request's id, which the answer repeats; None if there is none.
        prepare: (model, max_pixels, deadline) -> the graph's input, [N, 3, S, S]. It decodes no
            image after the deadline, a time of `time.monotonic`, but raises asyncio.TimeoutError.
        is_binary: whether the answer's logits are binary data.
    """

    id: str | None
    prepare: Callable[[ServedModel, int, float], npt.NDArray[Any]]
    is_binary: bool


def describe_model(name: str, model: ServedModel) -> dict[str, Any]:
    """The model's metadata."""
    artifact = model.artifact
    size_px = artifact.preprocess.size_px
    images = [-1, 3, size_px, size_px]
    logits = [-1, len(artifact.class_names)]
    return {
        "name": name,
        "versions": [_VERSION],
        "platform": model.classifier.backend.name,
        "inputs": [{"name": INPUT_NAME, "datatype": _datatype(artifact), "shape": images}],
        "outputs": [{"name": OUTPUT_NAME, "datatype": "FP32", "shape": logits}],
    }


def parse_request(body: bytes, length: str | None, artifact: Artifact) -> InferRequest:
    """Reads a request and its tensor.

    Args:
        body: JSON, followed by binary data if there is any.
        length: value of the header `LENGTH_HEADER`: bytes of JSON; None if the body is JSON only.
        artifact: describes the graph's input.

    Raises:
        HTTPException: something is missing, malformed or unknown.
    """
    n_bytes = len(body)
    if length is not None:
        is_number = length.isdecimal() and len(length) < 16
        if not is_number or int(length) > len(body):
            raise _bad(f"{LENGTH_HEADER} is {length[:40]!r}, the body has {len(body)} bytes")
        n_bytes = int(length)
    try:
        request = _Request.model_validate_json(body[:n_bytes])
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = ".".join(map(str, problem["loc"]))
        raise _bad(f"{place}: {problem['msg']}" if place else problem["msg"]) from error
    is_binary = request.parameters.binary_data_output
    if request.outputs and request.outputs[0].parameters.binary_data is not None:
        is_binary = request.outputs[0].parameters.binary_data
    prepare = _read_input(request.inputs[0], body[n_bytes:], artifact)
    return InferRequest(request.id, prepare, is_binary)


def format_answer(
    name: str, request: InferRequest, logits: npt.NDArray[np.float32]
) -> tuple[bytes, dict[str, str]]:
    """The body and the headers of an answer with logits [N, C]."""
    output: dict[str, Any] = {
        "name": OUTPUT_NAME,
        "datatype": "FP32",
        "shape": list(logits.shape),
    }
    data = b""
    if request.is_binary:
        data = logits.astype("<f4").tobytes()
        output["parameters"] = {"binary_data_size": len(data)}
    else:
        output["data"] = logits.ravel().tolist()
    answer: dict[str, Any] = {"model_name": name, "model_version": _VERSION, "outputs": [output]}
    if request.id is not None:
        answer["id"] = request.id
    head = json.dumps(answer).encode()
    if not request.is_binary:
        return head, {"Content-Type": "application/json"}
    kind = {"Content-Type": "application/octet-stream", LENGTH_HEADER: str(len(head))}
    return head + data, kind


def _bad(reason: str) -> HTTPException:
    return HTTPException(400, reason)


def _datatype(artifact: Artifact) -> str:
    return "FP32" if artifact.pixels == "float" else "UINT8"


def _read_input(
    tensor: _Input, binary: bytes, artifact: Artifact
) -> Callable[[ServedModel, int, float], npt.NDArray[Any]]:
    """Checks a request's input; returns `InferRequest.prepare`.

    Raises:
        HTTPException: name, shape, type or data do not fit the graph.
    """
    n_bytes = tensor.parameters.binary_data_size
    if n_bytes is not None and n_bytes != len(binary):
        raise _bad(f"binary_data_size is {n_bytes}, there are {len(binary)} bytes")
    if n_bytes is None and binary:
        raise _bad("there is binary data, but the input has no binary_data_size")
    if tensor.name == FILES_NAME:
        files = _read_files(tensor, binary)

        def prepare(model: ServedModel, max_pixels: int, deadline: float) -> npt.NDArray[Any]:
            rows = []
            for file in files:
                if time.monotonic() > deadline:  # nobody waits for the answer
                    raise asyncio.TimeoutError
                rows.append(model.prepare(file, max_pixels=max_pixels))
            return np.concatenate(rows)

        return prepare
    if tensor.name != INPUT_NAME:
        raise _bad(f"there is no such input; there are {INPUT_NAME} and {FILES_NAME}")
    pixels = _read_pixels(tensor, binary, artifact)
    return lambda *_: pixels


def _read_files(tensor: _Input, binary: bytes) -> list[bytes]:
    """Splits a BYTES tensor: each element follows its length (4 bytes, little-endian)."""
    if (
        tensor.datatype != "BYTES"
        or len(tensor.shape) != 1
        or tensor.parameters.binary_data_size is None
    ):
        raise _bad(f"{FILES_NAME} must be BYTES of the shape [N], as binary data")
    n_files = tensor.shape[0]
    if not 1 <= n_files <= _MAX_FILES:
        raise _bad(f"{FILES_NAME} must have 1 to {_MAX_FILES} images")
    files: list[bytes] = []
    start = 0
    while start < len(binary) and len(files) <= n_files:
        stop = start + 4 + int.from_bytes(binary[start : start + 4], "little")
        files.append(binary[start + 4 : stop])
        start = stop
    if start != len(binary) or len(files) != n_files:
        raise _bad(f"{FILES_NAME} does not hold {n_files} images with their lengths")
    return files


def _read_pixels(tensor: _Input, binary: bytes, artifact: Artifact) -> npt.NDArray[Any]:
    """The graph's input from numbers in JSON, or from binary data."""
    shape = tensor.shape
    size_px = artifact.preprocess.size_px
    datatype = _datatype(artifact)
    if shape[1:] != [3, size_px, size_px] or shape[0] < 1 or tensor.datatype != datatype:
        raise _bad(
            f"{INPUT_NAME} must be {datatype} of the shape [N, 3, {size_px}, {size_px}], N at"
            f" least 1; got {tensor.datatype[:40]} {shape}"
        )
    dtype = np.dtype("<f4" if datatype == "FP32" else np.uint8)
    is_json = tensor.parameters.binary_data_size is None
    try:
        values = np.asarray(tensor.data) if is_json else np.frombuffer(binary, dtype)
        images: npt.NDArray[Any] = values.reshape(shape)
    except (ValueError, RecursionError) as error:
        raise _bad(f"{INPUT_NAME} must have {math.prod(shape)} numbers, by its shape") from error
    if images.dtype.kind not in "iuf":
        raise _bad(f"the data of {INPUT_NAME} is no array of numbers")
    if is_json and datatype == "UINT8" and not np.isin(images, np.arange(256)).all():
        raise _bad(f"{INPUT_NAME} must have whole numbers from 0 to 255")
    with np.errstate(over="ignore"):  # overflows become infinity, which the next check refuses
        images = images.astype(dtype, copy=False)
    if not np.isfinite(images).all():
        raise _bad(f"{INPUT_NAME} has NaN or infinity")
    if datatype == "FP32" and np.any((images < -1) | (images > 2)):  # bicubic resizing overshoots
        raise _bad(f"{INPUT_NAME} must have values from 0 to 1")
    return images
