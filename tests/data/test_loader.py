import functools
import io
import math
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from kdedge.config.optim_spec import OptimSettings
from kdedge.data.images import Images
from kdedge.distributed import ProcessGroup
from kdedge.errors import DataError, RecipeError, ResourceError
from kdedge.loading.decoding import Preparation, choose_n_workers
from kdedge.loading.loader import evaluation_batches, n_steps, training_batches
from kdedge.loading.views import Augmentation, decode_pixels
from kdedge.runtime.preprocess import (
    ImageError,
    Preprocess,
    decode_image,
    is_upright_jpeg,
    resize_and_crop,
)

PREPROCESS = Preprocess(16, (0.48, 0.46, 0.41), (0.27, 0.26, 0.28))
SEVEN = [0, 1, 2, 0, 1, 2, 0]
"""Labels of images beside unlabeled ones."""


def normalize(image, preprocess):
    """[3, H, W]: `(pixel / 255 - mean) / std`, in float32."""
    mean, std = np.array([preprocess.mean, preprocess.std], np.float32)[..., None, None]
    return (np.asarray(image).transpose(2, 0, 1) / np.float32(255) - mean) / std


def preprocess_image(data, preprocess):
    return normalize(resize_and_crop(decode_image(data), preprocess), preprocess)


def labels_of(source):
    return {i: label for i, label in enumerate(source.labels)}


def batches(source, indices=range(23), labeled=None, **changes):
    """One epoch, with the values of all parts by their names."""
    options = {"seed": 1, "batch_size": 4, "n_workers": 0, "epoch": 1} | changes
    options.setdefault("epochs", options["epoch"])
    if labeled is not None:
        other, options["labeled_batch_size"] = labeled
        options["labeled"] = Images(other, range(len(other.labels)), train_labels=labels_of(other))
    optim = OptimSettings(**{k: options.pop(k) for k in OptimSettings.model_fields if k in options})
    views = options.pop("view_seed", options["seed"]), optim.crop_scale_min, optim.flip
    images = Images(source, indices, train_labels=options.pop("labels", labels_of(source)))
    preparation = Preparation(
        PREPROCESS, Augmentation(*views, optim.strong_views), options.pop("with_clean", False)
    )
    return list(training_batches(images, preparation, optim, **options))


def assert_same(expected, actual):
    assert [batch.keys for batch in expected] == [batch.keys for batch in actual]
    for one, other in zip(expected, actual, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)


@pytest.mark.parametrize(
    ("n_images", "batch_size", "steps"), [(1, 8, 1), (8, 8, 1), (15, 8, 1), (16, 8, 2), (23, 4, 5)]
)
def test_an_incomplete_last_batch_is_dropped_unless_it_is_the_only_one(n_images, batch_size, steps):
    assert n_steps(n_images, batch_size) == steps


def test_an_epoch_has_each_image_at_most_once_with_its_own_label(source):
    epoch = batches(source)
    keys = [key for batch in epoch for key in batch.keys]
    assert len(epoch) == 5
    assert len(set(keys)) == 20
    labels = torch.cat([batch.labels for batch in epoch]).tolist()
    assert labels == [int(key.removeprefix("image-")) % 3 for key in keys]
    assert epoch[0].images.shape == (4, 3, 16, 16)
    assert epoch[0].images.dtype == torch.float32
    assert epoch[0].labels.dtype == torch.int64


def test_what_images_weigh_goes_with_their_batch(source):
    def weigh(positions):
        return torch.tensor(positions, dtype=torch.float32)

    for batch in batches(source, weights=weigh):
        own = [int(key.removeprefix("image-")) for key in batch.keys]
        assert batch.to(torch.device("cpu")).weights.tolist() == own
    assert batches(source)[0].weights is None


def test_fewer_images_than_a_batch_give_one_small_batch(source):
    (batch,) = batches(source, batch_size=100)
    assert len(batch.keys) == len(batch.images) == 23


@pytest.mark.parametrize("first_step", [1, 3, 5])
def test_starting_at_a_step_equals_skipping_the_batches_before(source, first_step):
    assert_same(batches(source)[first_step:], batches(source, first_step=first_step))


def test_a_clean_image_beside_each_view_is_the_one_of_evaluation(source):
    plain, both = batches(source), batches(source, with_clean=True, n_workers=1)
    assert_same(plain, both)
    assert plain[0].clean_images is None
    positions = [int(key.removeprefix("image-")) for batch in both for key in batch.keys]
    clean = torch.cat([batch.clean_images for batch in both])
    for position, image in zip(positions, clean, strict=True):
        expected = preprocess_image(source.read(position), PREPROCESS)
        assert torch.equal(image, torch.from_numpy(expected))


def test_strong_views_are_asked_for_by_name(source):
    plain, strong = batches(source), batches(source, strong_views=True)
    assert [batch.keys for batch in plain] == [batch.keys for batch in strong]
    assert not torch.equal(plain[0].images, strong[0].images)


@pytest.mark.parametrize("change", [{"seed": 2}, {"epoch": 2}])
def test_another_seed_or_epoch_gives_another_order_and_other_crops(source, change):
    first, second = batches(source), batches(source, **change)
    assert [batch.keys for batch in first] != [batch.keys for batch in second]
    images = [
        {key: image for batch in epoch for key, image in zip(batch.keys, batch.images, strict=True)}
        for epoch in (first, second)
    ]
    assert not any(
        torch.equal(images[0][key], images[1][key]) for key in set.intersection(*map(set, images))
    )


def test_another_seed_of_the_views_leaves_the_order_as_it_is(source):
    first, second = batches(source), batches(source, view_seed=2)
    assert [batch.keys for batch in first] == [batch.keys for batch in second]
    assert not any(
        torch.equal(one.images, other.images) for one, other in zip(first, second, strict=True)
    )


def test_views_that_come_again_come_in_another_order(source):
    first, second = (batches(source, epoch=epoch, n_views=1, batch_size=23) for epoch in (1, 2))
    assert first[0].keys != second[0].keys
    again = [second[0].keys.index(key) for key in first[0].keys]
    assert torch.equal(first[0].images, second[0].images[again])


def test_an_images_crop_does_not_depend_on_the_other_images(source):
    (batch,) = batches(source, [3, 7, 11, 19], labels=None)
    full = {
        key: image
        for b in batches(source, batch_size=23)
        for key, image in zip(b.keys, b.images, strict=True)
    }
    assert batch.labels is None
    for key, image in zip(batch.keys, batch.images, strict=True):
        assert torch.equal(full[key], image)


def slow_stream(seed, n_images, batch_size):
    """Positions and pass of each step's labeled images, one image after the other."""
    stream = []
    number = 0
    while True:
        number += 1
        bits = np.random.Philox(
            key=np.array([seed + 2**32, number], dtype=np.uint64),
            counter=np.zeros(4, dtype=np.uint64),
        )
        stream += [(int(i), number) for i in np.random.Generator(bits).permutation(n_images)]
        while len(stream) >= batch_size:
            yield [stream.pop(0) for _ in range(batch_size)]


@pytest.mark.parametrize("n_workers", [0, 2])
def test_labeled_images_stand_beside_unlabeled_ones(source, listed, n_workers):
    """Seven labeled images, three a step: each pass ends within a batch."""
    other = listed(SEVEN)
    beside = other, 3
    options = {"labels": None, "with_clean": True, "n_workers": n_workers}
    slow = slow_stream(1, 7, 3)
    seen = []
    for epoch in (1, 2, 3):
        mixed = batches(source, epoch=epoch, labeled=beside, **options)
        plain = batches(source, epoch=epoch, labels=None, with_clean=True)
        assert len(mixed) == len(plain) == 5
        for one, alone in zip(mixed, plain, strict=True):
            assert (one.keys, one.labels, one.n_images) == (alone.keys, None, 4)
            assert torch.equal(one.images, alone.images)
            assert torch.equal(one.clean_images, alone.clean_images)
            assert alone.labeled is None
            wanted = next(slow)
            seen += [position for position, _ in wanted]
            part = one.labeled
            assert part.labels.tolist() == [position % 3 for position, _ in wanted]
            assert part.keys == tuple(f"image-{position}" for position, _ in wanted)
            assert one.all_keys == (*alone.keys, *part.keys)
            for image, clean, (position, number) in zip(
                part.images, part.clean_images, wanted, strict=True
            ):
                decoded = np.array(decode_image(other.read(position)))
                view = Augmentation(1 + 2**32, 0.08, True)(
                    torch.from_numpy(decoded).permute(2, 0, 1),
                    PREPROCESS,
                    position=position,
                    view=number,
                )
                pixels = view.permute(1, 2, 0).numpy()
                assert np.array_equal(image.numpy(), normalize(pixels, PREPROCESS))
                assert np.array_equal(
                    clean.numpy(), preprocess_image(other.read(position), PREPROCESS)
                )
    assert sorted(map(seen.count, range(7))) == [6, 6, 6, 6, 7, 7, 7]


def test_more_labeled_images_a_step_than_there_are_come_more_than_once(source, listed):
    (batch, *_) = batches(source, labels=None, labeled=(listed([0, 1]), 5))
    assert sorted(batch.labeled.labels.tolist()) in ([0, 0, 0, 1, 1], [0, 0, 1, 1, 1])


@pytest.mark.parametrize("n_workers", [0, 2])
def test_epochs_follow_each_other_as_if_each_were_asked_for_alone(source, listed, n_workers):
    options = {"labeled": (listed(SEVEN), 3), "n_views": 2}
    alone = [batches(source, epoch=epoch, **options) for epoch in (2, 3, 4)]
    expected = [batch for epoch in alone for batch in epoch][2:]
    actual = batches(source, epoch=2, epochs=4, first_step=2, n_workers=n_workers, **options)
    assert_same(expected, actual)
    assert_same([batch.labeled for batch in expected], [batch.labeled for batch in actual])


def test_unlabeled_images_bring_the_stored_features_of_a_teacher(source, listed):
    def read(positions, view):
        return torch.tensor([[position, view] for position in positions], dtype=torch.float32)

    options = {"labels": None, "labeled": (listed([0, 1, 2]), 2), "teacher_features": read}
    for batch in batches(source, epoch=4, n_views=2, **options):
        own = [int(key.removeprefix("image-")) for key in batch.keys]
        assert batch.teacher_features.tolist() == [[position, 2] for position in own]
        assert batch.labeled.teacher_features is None


def test_a_mixed_batch_moves_and_splits_with_its_labeled_part(source, listed):
    (batch, *_) = batches(source, labels=None, labeled=(listed([0, 1, 2]), 2))
    moved = batch.to(torch.device("meta"), micro_batch=2)
    assert {moved.images.device.type, moved.labeled.images.device.type} == {"meta"}
    assert (moved.micro_batch, moved.labeled.micro_batch) == (2, 2)


def test_loading_draws_from_no_global_generator(source):
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    batches(source)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert np.array_equal(before[2], np.random.get_state()[1])


def test_half_of_the_images_are_mirrored_and_none_without_flip(source):
    options = {"crop_scale_min": 0.99999, "batch_size": 23}
    n_mirrored = n_images = 0
    for epoch in range(1, 13):
        (plain,) = batches(source, flip=False, epoch=epoch, **options)
        (flipped,) = batches(source, flip=True, epoch=epoch, **options)
        for one, other in zip(plain.images, flipped.images, strict=True):
            is_same = torch.equal(one, other)
            assert is_same or torch.equal(one.flip(-1), other)
            n_mirrored += not is_same
            n_images += 1
    assert abs(n_mirrored / n_images - 0.5) < 4 * math.sqrt(0.25 / n_images)


def test_evaluation_keeps_the_order_and_the_device_preprocessing(source):
    loaded = list(evaluation_batches(source, [5, 2, 9, 1, 0], preprocess=PREPROCESS, batch_size=2))
    assert [positions for _, positions in loaded] == [[5, 2], [9, 1], [0]]
    for images, positions in loaded:
        for image, position in zip(images, positions, strict=True):
            expected = preprocess_image(source.files[position], PREPROCESS)
            assert np.array_equal(expected, image.numpy())


def every_pixel_value(side=16):
    """An image in which each channel has all values there are."""
    values = np.arange(side * side, dtype=np.uint8).reshape(side, side)
    return Image.fromarray(np.stack([values, values.T, values[::-1]], axis=-1))


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
        ),
    ],
)
def test_a_batch_is_normalized_as_an_image_is_to_the_last_bit(device):
    file = io.BytesIO()
    every_pixel_value().save(file, "PNG")
    source = SimpleNamespace(items=(), read=lambda i: file.getvalue())
    ((images, _),) = evaluation_batches(
        source, [0, 1], preprocess=PREPROCESS, batch_size=2, device=torch.device(device)
    )
    assert images.device.type == device
    assert images.is_contiguous(memory_format=torch.channels_last)
    expected = normalize(every_pixel_value(), PREPROCESS)
    for image in images.cpu().numpy():
        assert np.array_equal(image, expected)


def test_evaluating_nothing_gives_nothing(source):
    assert not list(evaluation_batches(source, [], preprocess=PREPROCESS, batch_size=2))


@pytest.mark.parametrize("n_workers", [0, 2])
def test_an_image_that_went_bad_is_named(source, n_workers):
    source.files[6] = None
    with pytest.raises(DataError, match=r"^image-6: cannot be read: no such file\.\n"):
        batches(source, n_workers=n_workers, batch_size=23)


def test_automatic_workers_leave_small_sets_to_the_main_process(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    assert choose_n_workers("auto", 1999) == 0
    assert choose_n_workers("auto", 2000) == 5
    assert choose_n_workers(3, 10) == 3
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert choose_n_workers("auto", 2000) == 8
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    assert choose_n_workers("auto", 2000) == 0


def picture():
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "PNG")
    return file.getvalue()


def die(i):
    """As a worker does that runs out of memory."""
    os._exit(9)


def fail(i):
    raise RuntimeError("no such attribute")


def note_parent(folder, i):
    (folder / str(os.getppid())).touch()
    return picture()


def by_a_worker(read, n_images):
    source = SimpleNamespace(items=(), read=read)
    return evaluation_batches(
        source, range(n_images), preprocess=PREPROCESS, batch_size=n_images, n_workers=1
    )


@pytest.mark.parametrize(
    ("read", "error", "message"),
    [
        (die, ResourceError, r"a loader process died.*\n.*optim\.n_workers"),
        (fail, RuntimeError, r"(?s)DataLoader worker.*no such attribute"),
    ],
)
def test_what_ends_a_worker_is_told_and_no_hang(read, error, message):
    with pytest.raises(error, match=message):
        next(by_a_worker(read, 4))


def test_without_shared_memory_the_message_says_so():
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # as a container's small /dev/shm
    try:
        with pytest.raises(ResourceError, match=r"no shared memory for batches.*\n.*/dev/shm"):
            next(by_a_worker(lambda i: picture(), 4))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_one_process_starts_the_workers_of_all_epochs(tmp_path):
    for _ in range(2):
        list(by_a_worker(functools.partial(note_parent, tmp_path), 1))
    (parent,) = tmp_path.iterdir()
    assert parent.name != str(os.getpid())


# As users write one: without `if __name__ == "__main__":`
SCRIPT = """
import os, sys, time
from pathlib import Path
from kdedge.data.images import Images
from kdedge.loading.loader import evaluation_batches
from kdedge.data.sources.folder import open_source
from kdedge.runtime.preprocess import Preprocess

source = open_source(Path(sys.argv[1]), class_names=(), labeled=False)
preprocess = Preprocess(16, (0.5,) * 3, (0.5,) * 3)
loading = evaluation_batches(source, [0] * 10**5, preprocess=preprocess, batch_size=4, n_workers=2)
next(loading)
try:
    print("ready", flush=True)
    for _ in loading:
        time.sleep(0.02)
except KeyboardInterrupt:
    next(loading, None)
    print("interrupted", flush=True)
"""


def start_script(tmp_path, source):
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.png").write_bytes(source.files[0])
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    root = str(Path(__file__).resolve().parents[2])
    process = subprocess.Popen(
        [sys.executable, str(script), str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": root},
        start_new_session=True,
    )
    assert process.stdout.readline() == "ready\n"
    return process


def members_of_session(session: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(int(entry.name))
    return found


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")


@needs_proc
def test_ctrl_c_reaches_the_main_process_alone(tmp_path, source):
    process = start_script(tmp_path, source)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    out, err = process.communicate()
    assert (out, err) == ("interrupted\n", "")
    assert process.returncode == 0


@needs_proc
def test_workers_die_with_a_killed_main_process(tmp_path, source):
    process = start_script(tmp_path, source)
    assert len(members_of_session(process.pid)) >= 3
    process.kill()
    process.wait()
    try:
        while members_of_session(process.pid):
            time.sleep(0.1)
    finally:  # where the test's time is over
        for pid in members_of_session(process.pid):
            os.kill(pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.parametrize(("n_processes", "is_mixed"), [(2, False), (3, False), (2, True)])
def test_the_shares_of_several_processes_are_the_batch_of_one(
    source, listed, n_processes, is_mixed
):
    options = {"labels": None, "labeled": (listed(SEVEN), 3)} if is_mixed else {}
    shares = [
        batches(source, group=ProcessGroup(rank, n_processes), n_workers=rank % 2, **options)
        for rank in range(n_processes)
    ]
    for step, whole in enumerate(batches(source, **options)):
        parts = [share[step] for share in shares]
        pairs = [(parts, whole)]
        pairs += [([part.labeled for part in parts], whole.labeled)] if is_mixed else []
        for own, one in pairs:
            assert torch.equal(torch.cat([part.images for part in own]), one.images)
            for part in own:
                assert (part.keys, part.n_images) == (one.keys, len(one.keys))
                assert torch.equal(part.labels, one.labels) if one.labels is not None else True


@pytest.mark.parametrize(("n_processes", "is_mixed", "n"), [(5, False, 4), (4, True, 3)])
def test_a_batch_of_fewer_images_than_processes_is_an_error(
    source, listed, n_processes, is_mixed, n
):
    options = {"labels": None, "labeled": (listed(SEVEN), 3)} if is_mixed else {}
    with pytest.raises(RecipeError, match=f"{n_processes} processes share batches of {n} images"):
        batches(source, group=ProcessGroup(0, n_processes), **options)


def jpeg(mode="RGB", **options):
    generator = np.random.default_rng(0)
    pixels = Image.fromarray(generator.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    written = io.BytesIO()
    pixels.resize((120, 90)).convert(mode).save(written, "JPEG", **options)
    return written.getvalue()


def turned():
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    return jpeg(exif=exif)


@pytest.mark.parametrize(
    ("data", "is_plain"),
    [
        (jpeg(), True),
        (jpeg(progressive=True, subsampling="4:4:4"), True),
        (jpeg("L"), False),
        (jpeg("CMYK"), False),
        (turned(), False),
        (jpeg() + b"more", False),
    ],
    ids=["color", "progressive", "gray", "CMYK", "turned", "with more behind it"],
)
def test_a_file_is_decoded_to_the_pixels_that_evaluation_sees(data, is_plain):
    assert is_upright_jpeg(data) == is_plain
    assert np.array_equal(
        decode_pixels(data).permute(1, 2, 0).numpy(), np.array(decode_image(data))
    )


def test_half_a_jpeg_is_no_image():
    with pytest.raises(ImageError, match="JPEG data cannot be decoded"):
        decode_pixels(jpeg()[:2000])
