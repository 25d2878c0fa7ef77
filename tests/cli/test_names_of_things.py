"""Every command and call that takes a run or an artifact takes each of its names."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import kdedge as package
from kdedge.errors import DataError

Run = Callable[..., Any]
ARTIFACT = "runs/tiny/02/artifacts/01"
NAMES = ("tiny", "tiny.yaml", "tiny/02/artifacts", "runs/tiny/02", ARTIFACT)
OBJECTS = {"a Run": package.open_run, "an Artifact": package.open_artifact}
# The texts of a call are found as those of the command of its name
DEAR = ("bench", "export", "report", "verify")
IMAGES = ["test/cat/0.jpg", "test/dog/0.jpg"]
QUICK = ("--against", "none", "--batch", "1", "--seconds", "0.01", "--calls", "3")

COMMANDS: dict[str, tuple[str, ...]] = {
    "bench": QUICK,
    "classes": (),
    "compare": ("tiny", *IMAGES),
    "eval": (),
    "export": ("--with-preprocess",),
    "predict": tuple(IMAGES),
    "report": (),
    "show": (),
    "verify": ("--images", "NEW", "--runs", "runs"),
    "watch": ("cats.avi",),
}
CALLS: dict[str, Callable[[Any, Path], object]] = {
    "bench": lambda one, _: package.bench(one, against=(), batches=(1,), seconds=0.01, calls=3),
    "compare": lambda one, _: package.compare(one, one, IMAGES),
    "cpu_choice": lambda one, _: package.cpu_choice(one),
    "evaluate": lambda one, _: package.evaluate(one),
    "export": lambda one, new: package.export(one, triton=new),
    "load": lambda one, _: package.load(one).close(),
    "open_artifact": lambda one, _: package.open_artifact(one),
    "open_run": lambda one, _: package.open_run(one),
    "predict": lambda one, _: package.predict(one, IMAGES),
    "report": lambda one, _: package.report(one),
    "serve": lambda one, _: package.serve(one, port=0).close(),
    "watch": lambda one, _: package.watch(one, "pool").close(),
    "write_smoke_images": lambda one, new: package.write_smoke_images(one, new),
}


@pytest.fixture(scope="module")
def shared(exported_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One trained and exported project for all names, as the current folder."""
    av = pytest.importorskip("av")
    from PIL import Image

    folder = shutil.copytree(exported_project, tmp_path_factory.mktemp("names") / "project")
    with av.open(str(folder / "cats.avi"), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 40, 40, "yuvj444p"
        with Image.open(folder / IMAGES[0]) as image:
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


@pytest.mark.usefixtures("shared")
@pytest.mark.parametrize(
    ("command", "name"),
    [(one, name) for one in COMMANDS for name in (NAMES[::3] if one in DEAR else NAMES)],
)
def test_a_command_takes_each_name(kdedge: Run, command: str, name: str, tmp_path: Path) -> None:
    rest = [str(tmp_path / "new") if one == "NEW" else one for one in COMMANDS[command]]
    kdedge(command, name, *rest).succeeds()


@pytest.mark.usefixtures("shared")
@pytest.mark.parametrize("name", NAMES[::3])
def test_serve_takes_each_name(start: Run, name: str) -> None:
    process = start("serve", name, "--port", "0")
    process.wait_until(lambda: "\n" in process.stdout)
    process.send(signal.SIGINT)
    assert process.wait() == 0, process.stderr


@pytest.mark.usefixtures("shared")
@pytest.mark.parametrize(
    ("call", "name"),
    [(one, name) for one in CALLS for name in (*(() if one in DEAR else NAMES), *OBJECTS)],
)
def test_a_call_takes_each_name_and_object(call: str, name: str, tmp_path: Path) -> None:
    thing = OBJECTS[name]("tiny/02") if name in OBJECTS else name
    CALLS[call](thing, tmp_path / "new")


def test_a_name_means_the_newest_run_with_an_artifact(
    exported: Path, kdedge: Run, caplog: pytest.LogCaptureFixture
) -> None:
    found = {package.open_run(name).name for name in ("runs/tiny", "tiny.yaml", "tiny.yml")}
    assert found == {"tiny/02"}
    shutil.copytree("runs/tiny/02", "runs/tiny/03")
    shutil.rmtree("runs/tiny/03/artifacts")
    for name in ("tiny", "tiny/02/artifacts", "runs/tiny/02/artifacts"):
        assert package.open_artifact(name).path.resolve() == exported / ARTIFACT
    kdedge("predict", "tiny/03", "test").fails(3, "tiny/03 is not an artifact, nor a run with one")
    kdedge("predict", "tinny/02", "test").fails(3, "Did you mean tiny/02?", "Images come after")
    kdedge("bench", "tinny/02").fails(2, "Did you mean tiny/02?")
    said = kdedge("predict", "tiny", *IMAGES).err
    assert "runs/tiny/03 is newer than runs/tiny/02, but was not exported." in said
    assert "Using runs/tiny/02/artifacts/01/model.onnx on onnxruntime" in said
    caplog.clear()
    package.serve("tiny", port=0).close()
    assert [message for message in caplog.messages if "was not exported" in message] == [
        "runs/tiny/03 is newer than runs/tiny/02, but was not exported."
    ]


@pytest.mark.usefixtures("exported")
def test_a_report_of_an_earlier_export_is_refused(kdedge: Run) -> None:
    shutil.copytree(ARTIFACT, "runs/tiny/02/artifacts/02")
    kdedge("report", ARTIFACT).fails(2, "is not the newest artifact of", "kdedge show")


@pytest.mark.usefixtures("exported")
def test_classes_of_a_call_are_checked_before_the_export() -> None:
    with pytest.raises(DataError, match=r'"cat" .* and "Cat" .* are one class name'):
        package.export("tiny/02", classes=["cat", "Cat"])
    assert [one.path.name for one in package.open_run("tiny/02").artifacts] == ["01"]


def test_show_says_which_of_an_artifacts_files_are_damaged(exported: Path, kdedge: Run) -> None:
    assert ": artifact of tiny" in kdedge("show", "tiny/02/artifacts/01").out
    whole = kdedge("show", ARTIFACT, "--all").out
    assert "trained" in whole
    assert "has changed since" not in whole
    file = Path(ARTIFACT, "model.onnx")
    file.write_bytes(file.read_bytes() + b" ")
    damaged = kdedge("show", ARTIFACT)
    assert (damaged.code, f"{file} has changed since the export." in damaged.err) == (3, True)
    kdedge("show", str(file)).fails(
        2, "is a file of an artifact", f"Name its folder: {file.parent}"
    )


def test_python_takes_lists_of_images(exported: Path) -> None:
    images = sorted(Path("test/cat").iterdir())
    keys = [one.key for one in package.predict("tiny/02", images, "test/dog/0.jpg")]
    assert keys == [*map(str, images), "test/dog/0.jpg"]
    compared = package.compare("tiny/02", "tiny/02", map(str, images))
    assert compared.n_images == len(images)
