"""A command's folder of runs, its device, and caches of images and backbones."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import torch

from kdedge.clip.backbone import ImageBackbone
from kdedge.clip.find import UnbuiltBackbone, find_backbone
from kdedge.clip.resolve import BackboneSpec
from kdedge.clip.weights_file import HashCache
from kdedge.data.images import Images
from kdedge.data.scan_cache import ScanCache
from kdedge.distributed import SINGLE_PROCESS, ProcessGroup
from kdedge.errors import RecipeError, SetupError
from kdedge.messages import option
from kdedge.progress import working
from kdedge.ray_workers import RayWorkers, WorkerResources
from kdedge.runtime.process import keep_freed_memory
from kdedge.torchrun import local_rank, local_world_size


class Workspace:
    """One command's folder of runs, device and process group.

    It caches backbones and images: each backbone is built once, and each image source is opened and
    decoded once before training, for all roles that use it.

    Attributes:
        root: folder of all runs.
        device: the device of models.
        group: the processes that train together.
        ray_workers: Ray workers that encode pools of images; None: this process encodes them.
        scans: cached facts of images: readable, size, digest.
    """

    def __init__(
        self,
        root: Path,
        device: torch.device,
        *,
        group: ProcessGroup = SINGLE_PROCESS,
        ray_workers: RayWorkers | None = None,
        is_read_only: bool = False,
    ) -> None:
        """Opens a workspace.

        Args:
            root: folder of all runs; it may not exist yet.
            device: the device of models.
            group: the processes that train together.
            ray_workers: Ray workers that encode pools of images; None: this process encodes them.
            is_read_only: whether to keep caches in memory and write nothing below `root`.
        """
        self.root = root
        self.device = device
        self.group = group
        self.ray_workers = ray_workers
        self._caches = None if is_read_only else root / ".cache"
        self.scans = ScanCache(self._cache("scans"))
        self._images: dict[tuple[object, ...], Images] = {}
        hashes = self._cache("backbones")
        self._hashes = None if hashes is None else HashCache(hashes)
        self._unbuilt: dict[tuple[BackboneSpec, bool], UnbuiltBackbone] = {}
        self._loaded: dict[str, ImageBackbone] = {}

    @classmethod
    def of_worker(cls, root: Path, resources: WorkerResources) -> Workspace:
        """Opens a workspace in a worker, which uses its share of the machine."""
        torch.set_num_threads(resources.n_cores)
        return cls(root, set_up_device(resources.device))

    def _cache(self, name: str) -> Path | None:
        return None if self._caches is None else self._caches / name

    def read_once(self, source: tuple[object, ...], read: Callable[[], Images]) -> Images:
        """The images that `read` returned for an equal description of a source, or returns now."""
        if source not in self._images:
            self._images[source] = read()
        return self._images[source]

    def identify(self, spec: BackboneSpec, *, needs_text_encoder: bool = True) -> UnbuiltBackbone:
        """Identifies a backbone by its hashes, without building it.

        Args:
            spec: the backbone's name and weights.
            needs_text_encoder: whether its text encoder is used.

        Raises:
            KdedgeError: see `clip.find.find_backbone`.
        """
        key = (spec, needs_text_encoder)
        if key not in self._unbuilt:
            self._unbuilt[key] = find_backbone(
                spec, needs_text_encoder=needs_text_encoder, hashes=self._hashes
            )
        return self._unbuilt[key]

    def load_backbone(self, backbone: UnbuiltBackbone) -> ImageBackbone:
        """Builds a backbone on the device, once per workspace."""
        if backbone.identity not in self._loaded:
            with working(f"loading {backbone.name}"):
                self._loaded[backbone.identity] = backbone.load(
                    device=self.device, text_cache_folder=self._cache("text_features")
                )
        return self._loaded[backbone.identity]


def parse_device(name: str | torch.device | None) -> torch.device:
    """Returns the device with a name; by default CUDA if available, else the CPU.

    A GPU gets its number, which older versions of torch need. Each process that torchrun started on
    a machine gets its own GPU.

    Raises:
        RecipeError: the name is not that of a device.
        SetupError: this machine has no such device.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    name = str(name)  # also of a torch.device
    given = option(f"--device {name}")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise RecipeError(f"{given} is not a device.\n  Use cpu, cuda or cuda:0.")
    if name == "cpu":
        return torch.device(name)
    if not torch.cuda.is_available():
        raise SetupError(
            f"{given}: PyTorch finds no CUDA device on this machine.\n"
            f"  Use {option('--device cpu')}, or run `kdedge doctor` to see why."
        )
    n_gpus = torch.cuda.device_count()
    number = torch.device(name).index
    if number is not None and number >= n_gpus:
        known = ", ".join(f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(n_gpus))
        raise SetupError(f"{given}: there is no such GPU on this machine.\n  It has {known}.")
    if local_world_size() > 1:  # a GPU for each process
        if number is not None or local_world_size() > n_gpus:
            raise SetupError(
                f"{local_world_size()} processes on this machine need one GPU each, and they"
                f" can use only {n_gpus if number is None else 1}.\n"
                "  Start fewer with `--nproc-per-node`, or give the device cuda without a number."
            )
        number = local_rank()
    return torch.device("cuda", number or 0)


def set_up_device(name: str | None) -> torch.device:
    """Makes a GPU torch's current one, or keeps freed memory on a CPU; turns off TF32 in cuDNN.

    Returns the device of `parse_device`, and raises its errors.
    """
    device = parse_device(name)
    if device.type == "cuda":
        # CUDA events, memory peaks and engines always use the current device
        torch.cuda.set_device(device)
    else:
        keep_freed_memory()
    # cuDNN's default would run the patch convolution of an fp32 run in TF32.
    torch.backends.cudnn.allow_tf32 = False
    return device
