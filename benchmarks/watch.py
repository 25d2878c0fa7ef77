"""The drift alarm of `kdedge watch`: frames until it fires, and false alarms; and the loop's cost.

A stream plays images in shots of 10 to 30 frames, chosen at random; in a shot the image moves by up
to three percent of its side. Logits and thumbnails of four positions of each image are computed
once, and streams are drawn from them, so that long ones are cheap. The alarm is the product's own.

    python benchmarks/watch.py ARTIFACT --images FOLDER_OR_SHARDS --other NAME=FOLDER ...
        [--seeds 20] [--frames 10000] [--threads 1] [--learn]
    python benchmarks/watch.py ARTIFACT ... --videos FOLDER [--codec h264] [--file NAME]

ARTIFACT has at least 100 images in its smoke set; those are left out of the streams. With --learn,
the reference is learned from the stream, as with a smaller smoke set: the change comes after as
many frames more. The streams
without change are of `--images`. After 1,000 of its frames, the others change to a folder of
`--other`, or to images of `--images` that are darker (30 % of the brightness), blurred (Gaussian of
4 % of the side) or noisy (standard deviation 40 of 255).

With --videos, each stream is a video file of 480x480 pixels that PyAV writes into FOLDER, and that
source and loop of `kdedge watch` play until an alarm. `--file` names the model file that watches.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from kdedge.data.sources import Source
from kdedge.data.sources.folder import open_source as open_folder
from kdedge.data.sources.webdataset import open_source as open_shards
from kdedge.deploy.parity import load_smoke_set
from kdedge.inference.classify import Classifier
from kdedge.runtime.backend import softmax
from kdedge.runtime.machine import cpu_model
from kdedge.runtime.preprocess import decode_image, resize_and_crop
from kdedge.runtime.video import import_pyav
from kdedge.serving.drift import DriftMonitor, Reference, Scored
from kdedge.serving.source import Frame
from kdedge.serving.source import Source as Watched
from kdedge.serving.source import open_source as open_watched
from kdedge.serving.watch import SHOT, Settings, watch_source

N_POSITIONS, N_BEFORE, N_AFTER, N_IMAGES = 4, 1000, 2000, 1000
N_LEARNING = 5000
"""Frames from which the alarm learns a reference."""

VIDEO_SIZE = (480, 480)
"""Square as the photos are, so that the model sees as much of them as in the smoke set."""

Images = list[Image.Image]
Domain = tuple[np.ndarray, np.ndarray]
"""Scores [N, positions, C] and thumbnails [N, positions, 16, 16]."""


def listed(place: str) -> Source:
    """The images of a folder, or of shards."""
    if place.endswith(".tar"):
        return open_shards(place, class_names=(), labeled=False)
    return open_folder(Path(place), class_names=(), labeled=False)


def moved(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A part of an image with 94 % of its sides."""
    left, top = rng.uniform(0, 0.06, 2) * image.size
    width, height = image.size
    return image.crop((int(left), int(top), int(left + 0.94 * width), int(top + 0.94 * height)))


def changed(kind: str, image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """An image of a worse camera."""
    if kind == "darker":
        return ImageEnhance.Brightness(image).enhance(0.3)
    if kind == "blurred":
        return image.filter(ImageFilter.GaussianBlur(0.04 * min(image.size)))
    noisy = np.asarray(image) + rng.normal(0, 40, (*image.size[::-1], 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def scored(classifier: Classifier, images: Iterator[Image.Image], seed: int) -> Domain:
    """Scores and thumbnails of each image in several positions."""
    rng, pixels, small = np.random.default_rng(seed), [], []
    for image in images:
        for _ in range(N_POSITIONS):
            part = moved(image, rng)
            pixels.append(np.asarray(resize_and_crop(part, classifier.artifact.preprocess)))
            small.append(np.asarray(part.resize((16, 16), Image.Resampling.BOX).convert("L")))
    scores = softmax(classifier.logits(np.stack(pixels)))
    shape = (-1, N_POSITIONS)
    return scores.reshape(*shape, scores.shape[1]), np.stack(small).reshape(*shape, 16, 16)


def some(source: Source, number: int, seed: int, left_out: set[bytes], size: Callable[..., bytes]):
    """Some images of a source, drawn with a seed, without those whose pixels are left out."""
    order = np.random.default_rng(seed).permutation(len(source.items))
    images = (decode_image(source.read(int(i))) for i in order)
    kept = (image for image in images if not left_out or size(image) not in left_out)
    return [image for image, _ in zip(kept, range(number), strict=False)]


def shots(n_images: int, n_frames: int, rng: np.random.Generator) -> Iterator[int]:
    """The image of each frame."""
    n = 0
    while n < n_frames:
        image = int(rng.integers(n_images))
        for _ in range(min(rng.integers(10, 31), n_frames - n)):
            yield image
            n += 1


def stream(domain: Domain, n_frames: int, rng: np.random.Generator):
    """Frames in shots."""
    scores, small = domain
    for image in shots(len(scores), n_frames, rng):
        position = rng.integers(N_POSITIONS)
        yield Scored(scores[image, position]), small[image, position]


def frames_until(reference: Reference | None, parts: list, *, n_ahead: int) -> int | None:
    """Number of frames from the change to the first alarm; negative for one before it."""
    monitor, n = DriftMonitor(reference, shot=SHOT), 0
    for part in parts:
        for one, small in part:
            n += 1
            if any(not found.is_over for found in monitor.add(one, Image.fromarray(small))):
                return n - n_ahead
    return None


def delays(reference: Reference | None, domains: dict[str, Domain], seeds: int) -> None:
    """Prints the row of each domain."""
    n_before = N_BEFORE + (N_LEARNING if reference is None else 0)
    for name, domain in domains.items():
        if name == "unchanged":
            continue
        found = []
        for seed in range(seeds):
            rng = np.random.default_rng([1, seed])
            parts = [stream(domains["unchanged"], n_before, rng), stream(domain, N_AFTER, rng)]
            found.append(frames_until(reference, parts, n_ahead=n_before))
        after = [one if one is not None and one > 0 else N_AFTER for one in found]
        early = sum(one is not None and one <= 0 for one in found)
        within = sum(one is not None and 0 < one <= 500 for one in found)
        row = (name, f"{statistics.median(after):.0f}", str(max(after)), f"{within} of {seeds}")
        print(f"| {' | '.join(row)} | {early} |", flush=True)


def false_alarms(reference: Reference | None, domain: Domain, seeds: int, frames: int) -> None:
    """Prints the number of unchanged streams with an alarm."""
    rngs = [np.random.default_rng([2, seed]) for seed in range(seeds)]
    found = [frames_until(reference, [stream(domain, frames, rng)], n_ahead=0) for rng in rngs]
    n = sum(one is not None for one in found)
    print(f"\n{seeds} streams of {frames:,} frames without change: {n} with an alarm")


def write_video(path: Path, codec: str, parts: list[tuple[Images, int]], seed: int) -> None:
    """Writes shots of each part's images, as many frames as it says."""
    av, rng = import_pyav(), np.random.default_rng([3, seed])
    with av.open(str(path), "w") as container:
        video = container.add_stream(codec, rate=25)
        video.width, video.height = VIDEO_SIZE
        video.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        video.thread_count = 1
        if codec == "mjpeg":  # FFmpeg's bit rates are those of a preview
            video.qmin = video.qmax = 3
        else:
            video.bit_rate = 2_000_000
        for images, n_frames in parts:
            for i in shots(len(images), n_frames, rng):
                image = ImageOps.fit(moved(images[i], rng), VIDEO_SIZE)
                container.mux(video.encode(av.VideoFrame.from_image(image)))
        container.mux(video.encode())


def played(path: Path, classifier: Classifier) -> tuple[int, str] | None:
    """The frame of the first alarm of `kdedge watch` on a video, and what has changed."""
    events = watch_source(open_watched(str(path)), classifier, Settings(drift="artifact"))
    found = ((one["frame"], one["statistic"]) for one in events if one["event"] == "drift")
    first = next(found, None)
    events.close()
    return first


def play_videos(given: argparse.Namespace, domains: dict[str, Images]) -> None:
    """Prints the first alarm in videos that change, and in one that does not."""
    given.videos.mkdir(parents=True, exist_ok=True)
    classifier = Classifier.load_named(given.artifact / given.file, n_threads=given.threads)
    path, known = given.videos / "played.mkv", domains.pop("unchanged")
    print(f"{given.codec}, {given.file}\n\n| change to | frames until the alarm |\n|---|---|")
    for name, images in domains.items():
        cells = []
        for seed in range(given.seeds):
            write_video(path, given.codec, [(known, N_BEFORE), (images, N_BEFORE)], seed)
            first = played(path, classifier)
            cells.append("none" if first is None else f"{first[0] - N_BEFORE} ({first[1]})")
        print(f"| {name} | {', '.join(cells)} |", flush=True)
    write_video(path, given.codec, [(known, given.frames)], given.seeds)
    print(f"\n{given.frames:,} frames without change, first alarm: {played(path, classifier)}")


def cost(classifier: Classifier, images: list[Image.Image], rounds: int = 7) -> None:
    """Prints frames a second of the model, of the model with resizing, and of the whole loop."""
    size = classifier.artifact.preprocess
    camera = [image.resize((640, 480)) for image in images[:100]]
    pixels = [np.asarray(resize_and_crop(image, size))[None] for image in camera]
    keyed = [(str(i), image) for i, image in enumerate(camera)]

    def bare() -> None:
        for one in pixels:
            classifier.logits(one)

    def resized() -> None:
        list(classifier.classify_many(iter(keyed), batch=1))

    def watched() -> None:
        frames = (Frame(i, time.time(), image) for i, image in enumerate(camera, 1))
        source = Watched("memory", "video", frames)
        list(watch_source(source, classifier, Settings(each=True, drift="stream")))

    seconds: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, do in (("model", bare), ("classify", resized), ("watch", watched)):
            before = time.perf_counter()
            do()
            seconds.setdefault(name, []).append((time.perf_counter() - before) / len(camera))
    best = {name: min(values) for name, values in seconds.items()}
    print(f"\n{cpu_model()}, frames of 640x480 in memory, one thread, best of {rounds} rounds")
    for name, value in best.items():
        print(f"{name:9} {1000 * value:6.2f} ms a frame, {value / best['model']:.2f} x the model")


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--images", required=True)
    parser.add_argument("--other", action="append", default=[])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--frames", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--learn", action="store_true")
    parser.add_argument("--videos", type=Path)
    parser.add_argument("--codec", default="mjpeg", choices=("mjpeg", "h264"))
    parser.add_argument("--file", default="model.onnx")
    given = parser.parse_args()
    classifier = Classifier.load(given.artifact, precision="fp32", n_threads=given.threads)
    preprocess = classifier.artifact.preprocess
    smoke = load_smoke_set(classifier.artifact).pixels
    scores = softmax(classifier.logits(smoke))
    reference = None if given.learn else Reference([Scored(one) for one in scores])

    def size(image: Image.Image) -> bytes:
        return np.asarray(resize_and_crop(image, preprocess)).tobytes()

    source, left_out = listed(given.images), {one.tobytes() for one in smoke}
    known = some(source, 4 * N_IMAGES, 1, left_out, size)
    images = {"unchanged": known}
    rng = np.random.default_rng(2)
    for kind in ("darker", "blurred", "noisy"):
        images[kind] = [changed(kind, image, rng) for image in known[:N_IMAGES]]
    for pair in given.other:
        name, _, place = pair.partition("=")
        images[name] = some(listed(place), N_IMAGES, 4, set(), size)
    if given.videos is not None:
        play_videos(given, images)
        return
    seeds = {"unchanged": 1} | dict.fromkeys(("darker", "blurred", "noisy"), 3)
    domains = {
        name: scored(classifier, iter(own), seeds.get(name, 5)) for name, own in images.items()
    }
    print(f"reference: {'stream' if given.learn else len(scores)}; {given.seeds} seeds\n")
    print("| change to | median frames | most | within 500 | alarms before it |")
    print("|---|---:|---:|---:|---:|")
    delays(reference, domains, given.seeds)
    false_alarms(reference, domains["unchanged"], given.seeds, given.frames)
    cost(classifier, known)


if __name__ == "__main__":
    main()
