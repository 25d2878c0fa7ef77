"""Runs an image encoder once, and records which module's output each operation reads.

Which convolution a batch norm follows is known only from a run: modules are defined in any order,
and many of timm's models have no graph that `torch.fx` can trace.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True, eq=False)
class Operation:
    """One call of an operator.

    Attributes:
        operator: torch's name: aten.convolution.default.
        arguments: its arguments, in order.
        inputs: the tensors among the arguments.
        outputs: the tensors that it gives.
    """

    operator: str
    arguments: tuple[Any, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    @property
    def is_convolution(self) -> bool:
        """Whether it is a convolution; its arguments are input, weight, bias, stride, padding..."""
        return self.operator == "aten.convolution.default"

    def reads(self, tensor: object) -> bool:
        """Whether the tensor is an argument."""
        return any(one is tensor for one in self.inputs)


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a module.

    Attributes:
        input: its first argument.
        output: what it gives.
        operations: what it computes.
    """

    input: object
    output: object
    operations: tuple[Operation, ...]


@dataclass(frozen=True, eq=False)
class Observed:
    """One run of an image encoder.

    Attributes:
        images: its input.
        features: its output.
        calls: the calls of each module, in the order of their ends.
        operations: everything that it computes, in order.
    """

    images: Tensor
    features: Tensor
    calls: Sequence[tuple[nn.Module, Call]]
    operations: Sequence[Operation]

    def single_calls(self) -> list[tuple[Any, Call]]:
        """Modules that were called once, with their call."""
        counts = Counter(id(module) for module, _ in self.calls)
        return [(module, call) for module, call in self.calls if counts[id(module)] == 1]

    def readers(self, tensor: object) -> list[Operation]:
        """The operations that read a tensor."""
        return [operation for operation in self.operations if operation.reads(tensor)]

    def depend_on_images(self) -> set[int]:
        """`id` of each tensor that the images decide."""
        found = {id(self.images)}
        for operation in self.operations:
            if any(id(one) in found for one in operation.inputs):
                found.update(id(one) for one in operation.outputs)
        return found


@torch.no_grad()
def observe(encoder: nn.Module, images: Tensor) -> Observed:
    """Runs an encoder on images [B, 3, H, W] and records its calls."""
    calls: list[tuple[nn.Module, Call]] = []
    with _Recorder() as recorder, _hooks(encoder, recorder.operations, calls):
        features = encoder(images)
    return Observed(images, features, calls, recorder.operations)


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[Operation] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        output = func(*args, **(kwargs or {}))
        self.operations.append(
            Operation(str(func), tuple(args), _tensors((args, kwargs)), _tensors(output))
        )
        return output


def _tensors(tree: object) -> tuple[Tensor, ...]:
    return tuple(leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


@contextmanager
def _hooks(
    encoder: nn.Module, operations: list[Operation], calls: list[tuple[nn.Module, Call]]
) -> Iterator[None]:
    """Records each call of each module."""
    starts: list[int] = []

    def enter(*_: object) -> None:
        starts.append(len(operations))

    def leave(module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        done = tuple(operations[starts.pop() :])
        calls.append((module, Call(inputs[0] if inputs else None, output, done)))

    with ExitStack() as stack:
        for module in encoder.modules():
            stack.callback(module.register_forward_pre_hook(enter).remove)
            stack.callback(module.register_forward_hook(leave).remove)
        yield
