"""Peak memory of training text prompts: it must not grow with the number of classes.

Runs one PromptSRC text pass with its backward pass (ViT-L/14's text encoder, random weights, names
of a few words), in chunks and whole, for 100 and 1000 classes, each in a process of its own, and
prints peak resident memory above the loaded model. glibc is told to give freed blocks of 1 MiB and
more back at once; left alone, its heap holds on to up to a gigabyte of them in some runs.

    python benchmarks/text_prompt_memory.py
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time

WORDS = [
    "red",
    "small",
    "old",
    "wooden",
    "garden",
    "river",
    "mountain",
    "city",
    "bird",
    "house",
    "boat",
    "flower",
    "stone",
]


def measure(n_classes: int, chunk_size: int) -> dict[str, float]:
    """One forward and backward pass; memory in MiB above the loaded model, time in seconds."""
    import open_clip
    import torch

    from kdedge.clip.text import encode_in_chunks, encode_text, tokenize

    torch.manual_seed(0)
    torch.set_num_threads(2)
    config = open_clip.get_model_config("ViT-L-14")
    config["vision_cfg"] = {"image_size": 28, "layers": 1, "width": 64, "patch_size": 14}
    model = open_clip.CLIP(**config).eval().requires_grad_(False)
    names = [
        " ".join(WORDS[(i // len(WORDS) ** p) % len(WORDS)] for p in range(3))
        for i in range(n_classes)
    ]
    tokenizer = open_clip.SimpleTokenizer()
    texts = tokenize(tokenizer, [f"a photo of a {name}." for name in names], context_length=77)
    context = torch.zeros(4, 768, requires_grad=True)
    deep = torch.randn(8, 4, 768).mul_(0.02).requires_grad_()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    features = encode_in_chunks(
        lambda chunk: encode_text(model, chunk, context=context, deep_context=deep),
        texts,
        chunk_size=chunk_size,
    )
    features.square().mean().backward()
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"mib": (peak - before) / 1024, "seconds": seconds, "positions": texts.tokens.shape[1]}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--one", nargs=2, type=int, metavar=("CLASSES", "CHUNK"))
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(*arguments.one)))
        return
    print(f"{'classes':>8} {'chunk':>6} {'positions':>10} {'peak MiB':>9} {'seconds':>8}")
    for n_classes, chunk in ((100, 64), (1000, 64), (100, 100), (1000, 1000)):
        command = [sys.executable, __file__, "--one", str(n_classes), str(chunk)]
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**20)}
        done = subprocess.run(command, check=True, capture_output=True, env=environment)
        found = json.loads(done.stdout)
        print(
            f"{n_classes:8d} {chunk:6d} {found['positions']:10.0f} {found['mib']:9.0f}"
            f" {found['seconds']:8.1f}"
        )


if __name__ == "__main__":
    main()
