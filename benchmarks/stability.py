"""How far a student's accuracy moves with the seed, under the public code's recipe and under ours.

    python benchmarks/stability.py FOLDER --jobs 2

Two sets of small real photos: some 25 of each of 100 classes, and 125 of each of the first ten of
them, as few classes as EuroSAT has. One teacher for all students, as the authors released one a
set, so that what moves is the student's own training: first values and order. Its answers are
computed once (student.views). The rows change one thing each.

Everything is kept in FOLDER: a second call goes on where a first one stopped, `--seeds` and
`--rows` choose what is run, and the table is printed with the time that the rest takes. A float32
cell takes 2 to 4 minutes of a core and one in fp16, which CPUs emulate, seven times as long: about
6 hours of one core for all.

`--on shard` measures on the last training shard, which is for choosing settings; the default is the
test shards.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

from kdedge.config.load import dump_recipe, load_recipe
from kdedge.config.yaml_file import dump_yaml, parse_yaml

ROOT = Path(__file__).parents[1]
PHOTOS = ROOT.parent / "shared" / "mini" / "photos100"
RECIPE = ROOT / "benchmarks" / "mini" / "photos100.yaml"
N_FEW = 10
VIEWS = 4

PUBLIC = {"lr": 0.005, "batch_size": 8, "epochs": 20, "warmup_epochs": 1, "warmup_lr": 1e-5}
"""The PromptKD repository's, but for its precision and choice of epoch."""


def public(*, kl: dict[str, float] | None = None, **optim: Any) -> dict[str, Any]:
    """A row with the public settings, of which some are changed."""
    weight = kl or {"weight": 1000.0}
    return {"student.optim": {**PUBLIC, **optim}, "student.settings.losses.kl": weight}


PER_IMAGE = {"weight_per_image": 2.5}
"""What one image weighs on SUN397's 397 classes, whatever the number of classes."""

ROWS: dict[str, dict[str, Any]] = {
    "official": {"official": True, **public()},
    "fp32, last epoch": public(),
    "batch 32": public(batch_size=32),
    "warm-up by step": public(schedule_per="step"),
    "clipped to 1": public(clip_grad_norm=1.0),
    "clipped to 1, warm-up by step": public(clip_grad_norm=1.0, schedule_per="step"),
    "2.5 an image": public(kl=PER_IMAGE),
    "2.5 an image, clipped to 1": public(kl=PER_IMAGE, clip_grad_norm=1.0),
    "2.5 an image, clipped, by step": public(kl=PER_IMAGE, clip_grad_norm=1.0, schedule_per="step"),
    "recipe of photos100": {},
}


def write_few(folder: Path) -> None:
    """Writes the photos of the first ten classes as folders."""
    names = (PHOTOS / "classnames.txt").read_text().split("\n")[:N_FEW]
    for part in ("train", "test"):
        for shard in sorted(PHOTOS.glob(f"{part}-*.tar")):
            target = folder / ("shard" if shard.name == "train-000005.tar" else part)
            with tarfile.open(shard) as tar:
                members = {member.name: member for member in tar}
                for name, member in members.items():
                    stem, _, extension = name.rpartition(".")
                    if extension != "cls":
                        continue
                    label = int(tar.extractfile(member).read())  # type: ignore[union-attr]
                    if label < N_FEW:
                        image = tar.extractfile(members[f"{stem}.jpg"]).read()  # type: ignore[union-attr]
                        place = target / names[label] / f"{stem}.jpg"
                        place.parent.mkdir(parents=True, exist_ok=True)
                        place.write_bytes(image)
    (folder / "classes.txt").write_text("\n".join(names) + "\n")


def recipes(folder: Path, *, on: str) -> dict[str, dict[str, Any]]:
    """The recipes by name: photos100's, with other images."""
    common = {"split": "base-to-novel"}
    shard = str(PHOTOS / "train-000000.tar")
    test = "train-000005.tar" if on == "shard" else "test-{000000..000001}.tar"
    few = folder / "photos10"
    return {
        f"photos100-{on}": {
            "classes": {"file": str(PHOTOS / "classnames.txt")},
            "data": {
                "unlabeled": {"webdataset": shard},
                "test": {"webdataset": str(PHOTOS / test)},
                **common,
            },
        },
        f"photos10-{on}": {
            "classes": {"file": str(few / "classes.txt")},
            "data": {
                "unlabeled": {"folder": str(few / "train")},
                "test": {"folder": str(few / on)},
                **common,
            },
        },
    }


def prepare(folder: Path, teacher: str, *, on: str, seeds: list[int], rows: list[str]) -> Path:
    """Writes images, recipes and the suite; gives the suite's file."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "photos10" / "classes.txt").exists():
        write_few(folder / "photos10")
    whole, _ = parse_yaml(dump_recipe(load_recipe(RECIPE).recipe), name=str(RECIPE))
    student = {**whole["student"], "views": VIEWS, "view_seed": 1}
    names = []
    for name, values in recipes(folder, on=on).items():
        path = folder / f"{name}.yaml"
        recipe = {"name": name, **values, "teacher": {"run": teacher}, "student": student}
        path.write_text(dump_yaml(recipe))
        names.append(path.name)
    suite = {
        "name": f"stability-{on}",
        "recipes": names,
        "methods": [{"name": row, "method": "promptkd", "set": ROWS[row]} for row in rows],
        "seeds": seeds,
    }
    file = folder / f"stability-{on}.yaml"
    file.write_text(dump_yaml(suite))
    return file


def kdedge(*arguments: str) -> None:
    """Runs a command with one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "kdedge", *arguments], env=environment, check=True)


def teacher_run(folder: Path) -> str:
    """Trains the one teacher, unless it is there."""
    runs = folder / "runs"
    kdedge("teach", str(RECIPE), "--resume", "--runs", str(runs))
    return str(runs / "photos100" / "01")


def summarize(results: Path) -> list[str]:
    """Harmonic means over seeds, with their spread, and what is left to do."""
    cells = json.loads(results.read_text())["cells"]
    lines = [
        "| set | row | seeds | harmonic mean | deviation | lowest to highest | novel, deviation |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for cell in cells:
        groups.setdefault((cell["recipe"], cell["row"]), []).append(cell)
    for (recipe, row), own in groups.items():
        found = [cell["result"] for cell in own if cell["status"] == "finished"]
        if not found:
            continue
        means = [result["harmonic_mean"] for result in found]
        novel = [result["novel"] for result in found]
        spread = [f"{statistics.stdev(x):.2f}" if len(x) > 1 else "-" for x in (means, novel)]
        lines.append(
            f"| {recipe} | {row} | {len(found)} | {statistics.mean(means):.2f} | {spread[0]} |"
            f" {min(means):.2f} to {max(means):.2f} | {spread[1]} |"
        )
    seconds = [cell["seconds"] for cell in cells if cell.get("seconds")]
    left = sum(cell["status"] != "finished" for cell in cells)
    if left and seconds:
        hours = left * statistics.mean(seconds) / 3600
        lines.append(f"\n{left} of {len(cells)} cells are left: about {hours:.1f} h of one core.")
    return lines


def main() -> None:
    """Runs what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--teacher", help="a finished teacher run; trained in FOLDER if left out")
    parser.add_argument("--on", choices=("test", "shard"), default="test")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--jobs", type=int, default=1)
    arguments = parser.parse_args()
    folder = arguments.folder.absolute()
    teacher = arguments.teacher or teacher_run(folder)
    suite = prepare(
        folder,
        str(Path(teacher).absolute()),
        on=arguments.on,
        seeds=arguments.seeds,
        rows=arguments.rows,
    )
    places = ["--runs", str(folder / "runs"), "--suites", str(folder / "suites")]
    kdedge("suite", str(suite), *places, "--jobs", str(arguments.jobs))
    results = folder / "suites" / f"stability-{arguments.on}" / "results.json"
    print("\n".join(summarize(results)))


if __name__ == "__main__":
    main()
