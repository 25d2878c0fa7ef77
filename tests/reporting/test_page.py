"""What a page says, and that it is safe and whole by itself."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kdedge.artifacts.parity import SMOKE_SET, SmokeSet, write_smoke_set
from kdedge.records.evaluation import EvalDetails, SampleImage, UnlabeledResult, WorstImage
from kdedge.reporting.blocks import Plot
from kdedge.reporting.headline import headline_of, verdict_of
from kdedge.reporting.image_cards import changed_cards
from kdedge.reporting.model_records import model_records
from kdedge.reporting.page import make_chapters, write_report
from kdedge.reporting.run_records import run_records
from kdedge.runs.folder import RunFolder
from kdedge.runs.results import Evaluation, read_details, read_evaluation, write_evaluations
from kdedge.runtime.cpu_choice import CpuChoice, CpuMachine, TimedFile, keep_choice
from kdedge.runtime.none_of_these import NoneOfThese

MakeRun = Callable[..., RunFolder]


class Page(HTMLParser):
    """Tags, attributes and text of a page, as a browser takes them.

    Attributes:
        tags: names of all elements.
        sources: what is loaded or linked to.
        text: all that is read, without styles.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.attributes: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [key for key, _ in attrs]
        self.sources += [value or "" for key, value in attrs if key in ("src", "srcset", "href")]

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] != ["style"]:
            self.text += data


def said(*runs: RunFolder) -> str:
    """All that a report of these runs would say, without drawing it."""
    return repr(make_chapters([run_records(run) for run in runs]))


def plots(*runs: RunFolder) -> list[str]:
    """Names of the images that it would have."""
    chapters = make_chapters([run_records(run) for run in runs])
    blocks = [b for chapter in chapters for section in chapter.sections for b in section.blocks]
    return [block.name for block in blocks if isinstance(block, Plot)]


@pytest.fixture(scope="module")
def page(whole_report: Path) -> Page:
    """The page about a run with all records."""
    return Page(whole_report.read_text(encoding="utf-8"))


def pictures(html: str) -> list[ET.Element]:
    """The page's plots."""
    return [ET.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", html, re.S)]


def test_everything_of_a_run_is_there(whole_report: Path, page: Page) -> None:
    assert whole_report.parts[-3:] == ("report", "01", "index.html")
    assert [path.name for path in whole_report.parent.iterdir()] == ["index.html"]
    html = whole_report.read_text(encoding="utf-8")
    assert len(pictures(html)) == 4  # confusions, calibration, speed, training
    order = [
        *("Accuracy on 40 test images", "The file to ship", "Accuracy by class", "Confusions"),
        *("Wrong, with the highest", "Confusion matrix", "Calibration", "Exported files"),
        *("Speed", "Training", "How it was made"),
    ]
    places = [page.text.find(title) for title in order if title != "Wrong, with the highest"]
    assert -1 not in places
    assert places == sorted(places)
    assert "student (ViT-B-16, promptkd) · 4 classes · 40 test images" in page.text
    assert "zero-shot CLIP (student's)" in page.text
    assert "To add it to the next report" not in page.text


def test_the_shares_that_scores_assume_and_the_ridge_probe_are_told(make_run: MakeRun) -> None:
    run = make_run(only="eval")
    balance = {"prior": "uniform", "strength": 1.0, "offsets": {}, "n_images": 9, "images": "nine"}
    run.logit_adjustment.write_text(json.dumps(balance), encoding="utf-8")
    (run.path / "references.json").write_text('{"ridge": 61.26, "trained": 50.0}')
    verdict = make_chapters([run_records(run)])[0].verdict
    assert "Its scores assume equal shares of the classes." in verdict[-2]
    assert "ridge regression on the teacher's features, by leave-one-out, 61.3 %" in verdict[-1]


def test_a_page_loads_nothing_and_runs_nothing(whole_report: Path, page: Page) -> None:
    assert "script" not in page.tags
    assert not [key for key in page.attributes if key.startswith("on")]
    for source in page.sources:
        assert source.startswith(("data:image/", "#"))
    assert any(source.startswith("data:image/jpeg") for source in page.sources)  # worst images
    for tree in pictures(whole_report.read_text(encoding="utf-8")):
        links = [v for e in tree.iter() for k, v in e.attrib.items() if k.endswith("href")]
        assert all(link.startswith(("#", "data:image/png")) for link in links)


def test_class_names_are_shown_as_they_are(whole_report: Path, page: Page) -> None:
    for name in ("<script>alert(1)</script>", "costs $5 or $6_x^2$", "狐 & Füchse"):
        assert name in page.text
    plots = pictures(whole_report.read_text(encoding="utf-8"))
    labels = {element.text for plot in plots for element in plot.iter()}
    assert {"costs $5 or $6_x^2$", "狐 & Füchse"} <= labels  # no formula, no box
    assert "there is no <GPU> here" in page.text
    assert "<script>" not in whole_report.read_text(encoding="utf-8")


def test_the_same_records_give_the_same_bytes(whole_report: Path, tmp_path: Path) -> None:
    again = write_report([run_records(RunFolder.open(whole_report.parents[2]))], tmp_path / "two")
    assert again.read_bytes() == whole_report.read_bytes()


@pytest.mark.parametrize(
    ("only", "expected"),
    [
        ("", ["kdedge eval", "kdedge export", "kdedge bench"]),
        ("eval artifact", ["kdedge export"]),
        ("metrics bench", ["kdedge eval", "kdedge export"]),
    ],
)
def test_what_is_not_recorded_is_left_out_with_the_command_that_makes_it(
    make_run: MakeRun, only: str, expected: list[str]
) -> None:
    run = make_run(only=only)
    found = re.findall(
        r"No [\w ]+ yet\. To add it to the next report, run: (kdedge \w+)", said(run)
    )
    assert list(dict.fromkeys(found)) == expected
    assert ("training" in plots(run)) == ("metrics" in only)
    assert ("confusion" in plots(run)) == ("eval" in only)


def test_a_run_evaluated_before_details_were_kept_has_its_accuracies(make_run: MakeRun) -> None:
    run = make_run()
    run.evaluation_details.unlink()
    assert "Accuracy on 40 test images" in said(run)
    assert "No accuracy and confusions yet. To add it to the next report, run: kdedge eval" in said(
        run
    )
    assert plots(run) == ["accuracy-latency", "training"]


def test_the_measured_time_of_the_newest_export_is_shown(make_run: MakeRun) -> None:
    run, speed = make_run(only="eval artifact"), run_records(make_run(only="bench")).speed
    first = run_records(run).artifact
    assert first is not None
    (time,) = speed.rows[1].measurements
    timed = TimedFile("i8.onnx", "int8", "onnxruntime 1", 100.0, time, 1.0, None)
    machine = CpuMachine.this()
    keep_choice(first, CpuChoice(machine, "i8.onnx", "0" * 64, 1, (timed,), {}, "2026-01-02"))
    assert "1 ms for one image" in said(run)


def test_accuracies_on_other_test_images_are_not_in_one_table(make_run: MakeRun) -> None:
    run, other = make_run(), make_run(only="eval")
    found = json.loads(other.evaluation.read_text(encoding="utf-8"))
    for result in found.values():
        result["images_hash"] = "of others"
    other.evaluation.write_text(json.dumps(found), encoding="utf-8")
    own = json.loads(run.evaluation.read_text(encoding="utf-8"))
    own["student"]["images_hash"] = own["zeroshot"]["images_hash"] = "of these"
    run.evaluation.write_text(json.dumps(own), encoding="utf-8")
    comparison = make_chapters([run_records(run), run_records(other)])[0]
    tables = comparison.sections[0].blocks
    assert [[row[0].partition(":")[0] for row in table.rows[:-1]] for table in tables] == [
        ["tiny/01"] * 2, ["tiny/02"] * 2
    ]  # fmt: skip


def test_a_model_that_two_runs_share_is_one_row(make_run: MakeRun) -> None:
    runs = make_run(only="eval"), make_run(only="eval")
    found = json.loads(runs[1].evaluation.read_text(encoding="utf-8"))
    found["student"] = {**found["zeroshot"]}
    runs[1].evaluation_details.unlink()
    runs[1].evaluation.write_text(json.dumps(found), encoding="utf-8")
    table: Any = make_chapters([run_records(run) for run in runs])[0].sections[0].blocks[0]
    assert [row[0].partition(" (")[0] for row in table.rows] == [
        *("tiny/01: zero-shot CLIP", "tiny/01: student", "tiny/02: student"),
        "always the most frequent class",
    ]


def test_what_was_kept_of_the_teacher_is_the_headline(make_run: MakeRun) -> None:
    run = make_run()
    found = json.loads(run.evaluation.read_text(encoding="utf-8"))
    found["teacher"] = {**found["student"], "all": 80.0, "per_class": {}}
    found["zeroshot"] = {**found["student"], "all": 30.0, "per_class": {}}
    found["student"] |= {"all": 40.0, "per_class": dict.fromkeys(found["student"]["per_class"])}
    run.evaluation_details.unlink()
    run.evaluation.write_text(json.dumps(found), encoding="utf-8")
    record = json.loads(run.provenance.read_text(encoding="utf-8"))
    record["summary"] = {"gmacs": 0.5, "teacher_gmacs": 43.0}
    run.provenance.write_text(json.dumps(record), encoding="utf-8")
    speed = json.loads((run.path / "bench/01.json").read_text(encoding="utf-8"))
    speed["rows"][1] |= {"gate": "passed", "model": "model.onnx"}
    (run.path / "bench/01.json").write_text(json.dumps(speed), encoding="utf-8")
    artifact = run_records(run).artifact
    replace(artifact, files=tuple(replace(file, gate="passed") for file in artifact.files)).save()
    headline = (
        "The student is right on 40.0 % of 40 test images (95 % interval: 26 to 55 %), 10.0 points"
        " above zero-shot CLIP.\n"
        "It keeps 50 % of its teacher's accuracy, and needs 86x fewer operations.\n"
        "model.onnx passed its gate: 2 MB, a call takes 1 ms."
    )
    assert "\n".join(make_chapters([run_records(run)])[0].verdict) == headline
    for name in ("teacher", "zeroshot"):
        found[name]["n_images"] += 1  # other images are not compared
    run.evaluation.write_text(json.dumps(found), encoding="utf-8")
    assert "\n".join(make_chapters([run_records(run)])[0].verdict) == (
        "The student is right on 40.0 % of 40 test images (95 % interval: 26 to 55 %).\n"
        "It needs 86x fewer operations than its teacher.\n"
        "model.onnx passed its gate: 2 MB, a call takes 1 ms."
    )
    none = NoneOfThese("mahalanobis", "none.safetensors", 95.0, "10 images", 10)
    names = artifact.class_names[1:]
    replace(run_records(run).artifact, class_names=names, none_of_these=none).save()
    assert "\n".join(make_chapters([run_records(run)])[0].verdict).endswith(
        f"a call takes 1 ms.\nThe accuracy is not that of the {len(names)} exported classes.\n"
        'The accuracy does not count "none", which about 5 % of usual images get.'
    )


def first_right(percent: float, n_images: int) -> str:
    """`EvalDetails.right` of a model that is right on the same images as a worse one, and more."""
    return f"{2 ** round(percent * n_images / 100) - 1:x}"


@pytest.mark.parametrize(
    ("own", "zero_shot", "teacher", "largest", "headline"),
    [
        ((30, 40), (30.5, 40), (20, 20), 10, "is 0.5 points below zero-shot CLIP: do not use it"),
        (
            (30, 40), (35, 20), (20, 20), 10,
            "is right on 30.0 % of 40 test images (95 % interval: 18 to 45 %), 5.0 points below"
            " zero-shot CLIP, and 20.0 points above it in the mean over classes",
        ),
        (
            (50, 50), (20, 20), (45, 45), 71,
            "is right on 50.0 % of 40 test images (95 % interval: 35 to 65 %), 30.0 points above"
            " zero-shot CLIP, 21.0 points below always predicting the most frequent class.\n"
            "It is as good as its teacher, as far as 40 images show",
        ),
        (
            (50, 50), (20, 20), (32.5, 45), 10,
            "is right on 50.0 % of 40 test images (95 % interval: 35 to 65 %), 30.0 points above"
            " zero-shot CLIP.\n"
            "It is 17.5 points (7 images) above its teacher",
        ),
    ],
)  # fmt: skip
def test_a_loss_is_not_congratulated_on(
    make_run: MakeRun,
    own: tuple[float, float],
    zero_shot: tuple[float, float],
    teacher: tuple[float, float],
    largest: float,
    headline: str,
) -> None:
    """Each model's accuracy over all images, and of its only class: the mean over classes."""
    run = make_run()
    found = json.loads(run.evaluation.read_text(encoding="utf-8"))
    student = found["student"] | {"largest_class_percent": largest}
    details = json.loads(run.evaluation_details.read_text(encoding="utf-8"))
    for name, (all_images, mean) in (
        ("student", own),
        ("zeroshot", zero_shot),
        ("teacher", teacher),
    ):
        classes = {"a": 2 * mean - all_images, "b": all_images}
        found[name] = {**student, "all": all_images, "per_class": classes}
        details[name] = {**details["student"], "right": first_right(all_images, 40)}
    run.evaluation_details.write_text(json.dumps(details), encoding="utf-8")
    run.evaluation.write_text(json.dumps(found), encoding="utf-8")
    assert headline_of(model_records(run)).startswith(f"The student {headline}")


def test_without_test_images_there_is_nothing_to_evaluate(make_run: MakeRun) -> None:
    run = make_run(only="artifact")
    text = run.recipe.read_text(encoding="utf-8")
    run.recipe.write_text(re.sub(r", test: \{.*?\}", "", text), encoding="utf-8")
    assert "The recipe has no test images" in said(run)
    assert list(run_records(run).missing) == ["agreement and predicted classes", "speed"]
    run.provenance.write_text(run.provenance.read_text().replace('"finished"', '"running"'))
    assert run_records(run).missing == {}


@pytest.mark.parametrize(
    "file",
    [
        *("eval.json", "eval_details.json", "metrics.jsonl", "recipe.yaml"),
        *("bench/01.json", "artifacts/01/artifact.json"),
    ],
)
def test_a_damaged_record_costs_its_part_and_nothing_else(make_run: MakeRun, file: str) -> None:
    run = make_run()
    path = run.path / file
    path.write_text(path.read_text(encoding="utf-8")[5:], encoding="utf-8")
    (problem,) = run_records(run).problems
    assert str(path) in problem
    assert said(run).count("Left out, as it cannot be read") == 1
    assert len(plots(run)) >= 2


def test_a_line_that_is_being_written_is_not_damage(make_run: MakeRun) -> None:
    run = make_run(only="metrics")
    text = run.metrics.read_text(encoding="utf-8")
    run.metrics.write_text(text + '{"epoch": 2, "st', encoding="utf-8")
    records = run_records(run)
    assert records.problems == ()
    assert [step["step"] for step in records.training.steps] == [20, 40, 60, 80, 100]


def test_without_their_folder_worst_images_are_names(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    (tmp_path / "pool").rename(tmp_path / "elsewhere")
    assert "data:image/jpeg" not in said(run)
    assert "Card(image='0.png', thumbnail=None" in said(run)
    assert re.search(r"No images: \S*pool does not exist", said(run))
    run.recipe.write_text(re.sub(r", test: \{.*?\}", "", run.recipe.read_text()))
    assert "No images: the recipe does not name these images" in said(run)


def test_one_class_is_enough(make_run: MakeRun) -> None:
    run = make_run(["only"], only="eval metrics")
    write_report([run_records(run)], output=None)
    assert plots(run) == ["confusion", "calibration", "training"]
    assert "Confusions" not in said(run)


def test_a_thousand_classes_stay_readable(make_run: MakeRun) -> None:
    run = make_run([f"class {number}" for number in range(1000)], only="eval")
    written = write_report([run_records(run)], output=None)
    html = written.read_text(encoding="utf-8")
    page = Page(html)
    assert "5 neighboring classes share a row and a column" in page.text
    assert "The 12 most frequent of" in page.text
    assert "The 12 lowest of 1,000 classes" in page.text
    labels = [element.text for plot in pictures(html) for element in plot.iter()]
    assert not [label for label in labels if label and label.startswith("class 9")]
    assert written.stat().st_size < 2_000_000


def test_several_runs_are_compared_first(make_run: MakeRun) -> None:
    runs = make_run(only="eval bench"), make_run(only="bench"), make_run(only="bench", cpu="B")
    written = write_report([run_records(run) for run in runs], output=None)
    html = written.read_text(encoding="utf-8")
    page = Page(html)
    assert page.text.index("3 runs compared") < page.text.index("How it was made")
    assert "tiny/01: student" in page.text
    assert "tiny/02: i8.onnx" in page.text
    assert "Measured on another machine, so shown only in its chapter: tiny/03." in page.text
    twin = RunFolder(shutil.copytree(runs[1].path, runs[1].root / "other/tiny/02"), "student")
    chapters = make_chapters([run_records(run) for run in (runs[1], twin)])
    assert len({chapter.anchor for chapter in chapters}) == 3
    ids = re.findall(r' id="([^"]+)"', html)
    assert len(set(ids)) == len(ids)
    assert {source[1:] for source in page.sources if source.startswith("#")} <= set(ids)


def test_latencies_are_all_of_one_batch(make_run: MakeRun) -> None:
    run = make_run()
    path = run.path / "bench" / "01.json"
    values = json.loads(path.read_text())
    first, second = (row["measurements"] for row in values["rows"][:2])
    first.insert(0, {**first[0], "batch": 8, "p50_ms": 77.7})
    second[0] |= {"batch": 8, "p50_ms": 88.8}
    path.write_text(json.dumps(values))
    (latencies,) = re.findall(
        r"Table\(title='Latency, ms per call at batch 1'.*?caption='.*?'", said(run)
    )
    assert "'CLIP', '4" in latencies
    assert "77.7" not in latencies
    assert "i8.onnx" not in latencies


def test_the_newest_numbers_count(make_run: MakeRun) -> None:
    run = make_run()
    values: dict[str, Any] = json.loads((run.path / "bench" / "01.json").read_text())
    for number in (9, 10):
        values["command"] = f"kdedge bench number{number}"
        (run.path / "bench" / f"{number:02d}.json").write_text(json.dumps(values))
    for name in ("mine", "²"):
        (run.path / "bench" / f"{name}.json").write_text("{")
    records = run_records(run)
    assert records.speed.command == "kdedge bench number10"
    assert records.problems == ()


def test_without_labels_the_teachers_predictions_stand_beside(make_run: MakeRun) -> None:
    names = [f"class {number:02}" for number in range(14)]
    run = make_run(names, only="")
    counts = {name: number for number, name in enumerate(names, start=1)}
    sample = SampleImage("0.png", ((names[0], 60.0),), names[1])
    found = UnlabeledResult(
        *(105, "105 of 105 images of data.unlabeled", "hash", 75.0, 60.0, 66.0),
        *(counts, {names[0]: 105}, len(names), (sample,)),
    )
    run.unlabeled_evaluation.write_text(json.dumps(found.to_dict()), encoding="utf-8")
    (chapter,) = make_chapters([run_records(run)])
    second, first = chapter.verdict
    assert first == "The student agrees with its teacher on 75 % of 105 images."
    assert second.startswith("Whether to deploy it is not known: put labeled images into")
    blocks: dict[str, Any] = {section.title: section.blocks for section in chapter.sections}
    facts, table = blocks["Without labels"]
    assert ["teacher agrees", "75.00 %"] in facts.rows
    assert table.rows[0] == ["class 13", "14", "0"]
    assert table.caption == "The 12 most frequent of 14."
    (cards,) = blocks["Images"]
    assert cards.cards[0].lines == ["class 00, 60\u00a0%", "teacher: class 01"]


def test_a_report_says_on_what_condition_to_deploy(make_run: MakeRun) -> None:
    run = make_run()

    def said_of(
        confusion: Sequence[tuple[int, int, int]], largest: float = 60.0, alone: float = 0.0
    ) -> str | None:
        n_images = sum(n for *_, n in confusion)
        names = ("cat", "fox", "owl")
        details = EvalDetails(names, n_images, tuple(confusion), ())
        n_of = {name: sum(n for a, _, n in confusion if names[a] == name) for name in names}
        n_right = {names[a]: n for a, b, n in confusion if a == b}
        per_class = {x: 100 * n_right.get(x, 0) / n if n else None for x, n in n_of.items()}
        known = read_evaluation(run)["student"]
        result = replace(
            known,
            all=details.accuracy_percent,
            largest_class_percent=largest,
            per_class=per_class,
        )
        results = {"student": result, "labels_alone": replace(result, all=alone)}
        of = {
            name: replace(details, right=first_right(x.all, n_images))
            for name, x in results.items()
        }
        measured = {"results": results, "details": of}
        verdict = verdict_of(replace(model_records(run), **measured))
        return None if verdict is None else verdict.text

    # No test image of owls: their accuracy is unknown, and not 0
    assert said_of([(0, 0, 8), (0, 1, 2), (1, 0, 1), (1, 1, 1)]) == (
        "Deploy it if 75.0 % right is enough, and 50 % of its weakest class, fox (1 of 2 images;"
        " 95 % interval: 9 to 91 %). More test images would tell more. No test image shows"
        ' "owl".'
    )
    assert said_of([(0, 0, 8), (1, 1, 1), (2, 2, 1)]) == (
        "Deploy it if 72.2 % right is enough: 10 images, all of them right, cannot show more (95 %"
        " interval)."
    )
    assert "Do not deploy it: it predicts one class" in str(said_of([(0, 0, 8), (1, 0, 2)]))
    assert "always predicting the most frequent" in str(
        said_of([(0, 0, 5), (0, 1, 4), (1, 1, 1)], 80.0)
    )
    assert "all test images are of one class, fox." in str(said_of([(1, 1, 5), (1, 0, 5)]))
    assert "labels alone: 90.0 % right. Train it with" in str(
        said_of([(0, 0, 50), (0, 1, 40), (1, 1, 10)], 40.0, alone=90.0)
    )
    few = [(0, 0, 5), (0, 1, 4), (1, 1, 1)]  # 6 of 10 images are no fewer than 9, by chance
    assert str(said_of(few, 40.0, alone=90.0)).startswith("Deploy it if")
    record = json.loads((run.path / "provenance.json").read_text())
    record["summary"]["closed_form"] = {"lambda": 1.0, "unseen_classes": ["fox"]}
    (run.path / "provenance.json").write_text(json.dumps(record))
    assert str(said_of([(0, 0, 8), (1, 1, 1), (1, 0, 1), (2, 2, 1)])).endswith(
        ' more. The teacher predicts "fox" for no unlabeled image: add images.'
    )
    many = [(0, 0, 2000), (0, 1, 1000), (1, 1, 9)]
    assert (
        "66.8 % right is enough, and 67 % of its weakest class, cat (2,000 of 3,000 images)."
        in str(said_of(many))
    )


def test_the_headline_names_the_file_to_ship_and_those_that_missed_their_gates(
    make_run: MakeRun,
) -> None:
    run = make_run(only="artifact")
    record = json.loads(run.provenance.read_text(encoding="utf-8"))
    record["summary"] = {
        "gmacs": 1.0,
        "teacher_gmacs": 2.0,
        "parameters": 3,
        "teacher_parameters": 2,
    }
    run.provenance.write_text(json.dumps(record), encoding="utf-8")
    artifact = run_records(run).artifact
    plain, int8 = artifact.files
    assert int8.parity is not None
    gpus = replace(int8, name="gpu.onnx", device="gpu", gate="passed")
    parity = replace(int8.parity, agreement_percent=97.4, n_nonfinite=0)
    cpus = replace(int8, gate="missed", parity=parity)
    plain = replace(plain, gate="passed", parity=replace(int8.parity, agreement_percent=100.0))
    shipped = "passed its gate: {} MB, it agrees with the student on"
    missed = "i8.onnx ({}) missed its gate, and is used only if you ask for that precision."
    for files, expected in [
        (
            (plain, gpus, cpus),
            f"model.onnx {shipped.format(2)} 100.0 % of 40 images.\n{missed.format('97.40 %')}",
        ),
        ((replace(cpus, gate="passed"), gpus), f"i8.onnx {shipped.format(1)} 97.4 % of 40 images."),
        ((replace(int8, gate="missed"),), missed.format("NaN or infinity for 1 image")),
    ]:
        replace(artifact, files=files).save()
        assert str(headline_of(model_records(run))).endswith(
            f"needs 2.0x fewer operations but 1.5x more weights than its teacher.\n{expected}"
        )


def test_the_verdict_is_about_the_file_to_ship_where_it_answers_otherwise(
    make_run: MakeRun,
) -> None:
    run = make_run(["cat", "fox"])
    student = read_evaluation(run)["student"]
    artifact = run_records(run).artifact
    assert student.n_images == 20
    (int8,) = (file for file in artifact.files if file.parity is not None)
    assert int8.parity is not None
    parity = replace(
        int8.parity,
        n_images=20,
        n_labeled=20,
        images_hash=student.images_hash,
        accuracy_percent=60.0,
        reference_accuracy_percent=student.all,
        accuracy_drop=student.all - 60.0,
        per_class={"cat": 70.0, "fox": 50.0},
    )
    replace(artifact, files=(replace(int8, parity=parity, gate="passed"),)).save()
    (run.path / "bench/01.json").unlink()
    results = {"student": replace(student, largest_class_percent=40.0)}
    below = f"{student.all - 60:.1f} points below the student before export"
    assert str(headline_of(replace(model_records(run), results=results))).startswith(
        f"The file to ship, i8.onnx, is right on 60.0 % of 20 test images (95 % interval: 39 to"
        f" 78 %), {below}."
    )
    verdict = verdict_of(replace(model_records(run), results=results))
    assert verdict.text.startswith(
        "Deploy it if 60.0 % right is enough, and 50 % of its weakest class, fox (5 of 10 images;"
    )
    assert re.search(
        r"Accuracy by class.*?'file to ship', 'student.*?\['fox', '10', '50.00'", said(run)
    )
    # Compared on other images, it cannot be set beside the student's figures
    parity = replace(parity, images_hash="1" * 64)
    replace(artifact, files=(replace(int8, parity=parity, gate="passed"),)).save()
    assert str(headline_of(replace(model_records(run), results=results))).startswith(
        f"The student is right on {student.all:.1f} %"
    )


def test_the_file_to_ship_is_set_beside_the_teacher_and_the_student_beside_labels_alone(
    make_run: MakeRun,
) -> None:
    """A file of 60 %, a student of 70 %, and between them the two that they are compared with."""
    run = make_run(["cat", "fox"], only="eval artifact")
    student = replace(read_evaluation(run)["student"], n_images=2000, all=70.0)
    artifact = run_records(run).artifact
    (int8,) = (file for file in artifact.files if file.parity is not None)
    assert int8.parity is not None
    parity = replace(
        int8.parity,
        n_images=2000,
        n_labeled=2000,
        images_hash=student.images_hash,
        accuracy_percent=60.0,
        reference_accuracy_percent=70.0,
        accuracy_drop=10.0,
        per_class={"cat": 70.0, "fox": 50.0},
    )
    replace(artifact, files=(replace(int8, parity=parity, gate="passed"),)).save()
    results = {
        "student": student,
        "teacher": replace(student, all=64.0),
        "labels_alone": replace(student, all=66.0),
    }
    headline = str(headline_of(replace(model_records(run), results=results, details={})))
    assert "right on 60.0 % of 2,000 test images" in headline
    assert "keeps 94 % of its teacher's accuracy" in headline
    assert "The unlabeled images brought 4.0 points: the same network" in headline


# The images of a gallery are the ones that it names


def first_pixel(uri: str | None) -> list[int]:
    data = base64.b64decode(uri.partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(data)))[0, 0].round(-1).tolist()


def test_an_image_stands_beside_its_own_two_answers(make_run: MakeRun) -> None:
    records = run_records(make_run(["cat", "dog"], only="artifact"))
    changed = changed_cards(records.artifact, records.artifact.files[1], records.recipe)
    assert [(card.image, card.lines) for card in changed.cards] == [
        ("0.png", ["cat → dog", "distance 0.4000"]),
        ("gone.png", ["dog → no finite scores", "distance 1.0000"]),
        ("1.png", ["cat in both", "distance 0.1000"]),
    ]
    assert first_pixel(changed.cards[0].thumbnail) == [0, 40, 200]
    assert changed.cards[1].thumbnail is None
    assert first_pixel(changed.cards[2].thumbnail) == [90, 40, 200]
    assert "1 of these images no longer exist" in changed.caption
    assert changed_cards(records.artifact, records.artifact.files[0], records.recipe) is None
    int8 = records.artifact.files[1]
    assert int8.parity is not None
    same = tuple(WorstImage("0.png", "cat", "cat", distance) for distance in (0.00004, None))
    unchanged = replace(int8, parity=replace(int8.parity, worst=same))
    assert changed_cards(records.artifact, unchanged, records.recipe) is None


def test_an_image_of_a_smoke_set_is_found_by_its_number(make_run: MakeRun, tmp_path: Path) -> None:
    artifact = run_records(make_run(["cat", "dog"], only="artifact")).artifact
    smoke = artifact.path / SMOKE_SET
    pixels = (
        np.zeros((3, 32, 32, 3), np.uint8) + np.array([0, 50, 100], np.uint8)[:, None, None, None]
    )
    write_smoke_set(smoke, SmokeSet(pixels, np.zeros((3, 2), np.float32)))
    int8 = artifact.files[1]
    assert int8.parity is not None
    parity = replace(
        int8.parity,
        images=f"3 images of {SMOKE_SET}",
        images_hash=None,
        worst=tuple(WorstImage(f"{SMOKE_SET}[{i}]", "cat", "dog", 0.5) for i in (1, 2, 7)),
    )
    artifact = replace(
        artifact,
        files=(replace(int8, parity=parity),),
        others={SMOKE_SET: hashlib.sha256(smoke.read_bytes()).hexdigest()},
    )
    changed = changed_cards(artifact, artifact.files[0], None)
    assert [first_pixel(one.thumbnail) for one in changed.cards[:2]] == [[50] * 3, [100] * 3]
    assert changed.cards[2].thumbnail is None


def test_a_sample_has_its_image_its_answers_and_its_class(
    make_run: MakeRun, tmp_path: Path
) -> None:
    run = make_run(["cat", "dog"], only="eval")
    for number, name in enumerate(["cat", "dog"]):
        (tmp_path / "test" / name).mkdir(parents=True)
        color = (90 * number, 40, 200)
        Image.new("RGB", (300, 200), color).save(tmp_path / "test" / name / "0.png")
    text = run.recipe.read_text(encoding="utf-8")
    pool = str(tmp_path / "pool")
    before, _, after = text.rpartition(pool)
    run.recipe.write_text(f"{before}{tmp_path / 'test'}{after}", encoding="utf-8")
    details, results = read_details(run)["student"], read_evaluation(run)["student"]
    samples = {
        "right": (SampleImage("cat/0.png", (("cat", 75.0), ("dog", 25.0)), "cat", "cat"),),
        "wrong": (SampleImage("dog/0.png", (("cat", 60.0),), "dog", "dog"),),
        "most unsure": (SampleImage("dog/gone.png", (("dog", 50.5),), None, "dog"),),
    }
    write_evaluations(run, {"student": Evaluation(results, replace(details, samples=samples))})
    (chapter,) = make_chapters([run_records(run)])
    (section,) = [section for section in chapter.sections if section.title == "Images"]
    blocks: Any = section.blocks
    wrong, unsure, right = blocks
    assert [block.title.partition(",")[0] for block in blocks] == [
        *("Wrong", "Lowest confidence", "Right")
    ]
    assert right.cards[0].lines == ["cat, 75\u00a0%", "right", "teacher: cat"]
    assert first_pixel(right.cards[0].thumbnail) == [0, 40, 200]
    assert wrong.cards[0].lines == ["cat, 60\u00a0%", "is dog", "teacher: dog"]
    assert first_pixel(wrong.cards[0].thumbnail) == [90, 40, 200]
    assert unsure.cards[0].thumbnail is None
