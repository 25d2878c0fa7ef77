"""What a page says, and that it is safe and whole by itself."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kdedge.artifacts.parity import SMOKE_SET, SmokeSet, write_smoke_set
from kdedge.records.evaluation import (
    EvalDetails,
    ParityResult,
    SampleImage,
    UnlabeledResult,
    WorstImage,
)
from kdedge.reporting.blocks import Chapter, Plot
from kdedge.reporting.headline import headline_of, verdict_of
from kdedge.reporting.image_cards import changed_cards
from kdedge.reporting.model_records import ModelRecords, model_records
from kdedge.reporting.page import make_chapters, write_report
from kdedge.reporting.run_records import run_records
from kdedge.runs.folder import RunFolder
from kdedge.runs.results import Evaluation, read_details, read_evaluation, write_evaluations
from kdedge.runtime.artifact import ModelFile
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
    names = []
    for chapter in make_chapters([run_records(run) for run in runs]):
        for section in chapter.sections:
            names += [block.name for block in section.blocks if isinstance(block, Plot)]
    return names


def verdict_lines(run: RunFolder) -> list[str]:
    """The sentences at the top of a run's chapter."""
    return list(make_chapters([run_records(run)])[0].verdict)


@pytest.fixture(scope="module")
def page(whole_report: Path) -> Page:
    """The page about a run with all records."""
    return Page(whole_report.read_text(encoding="utf-8"))


def pictures(html: str) -> list[ET.Element]:
    """The page's plots."""
    return [ET.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", html, re.S)]


def test_a_report_is_one_file_with_a_number_in_the_runs_folder(whole_report: Path) -> None:
    assert whole_report.parts[-3:] == ("report", "01", "index.html")
    assert [path.name for path in whole_report.parent.iterdir()] == ["index.html"]


def test_a_page_has_every_part_of_a_run_in_order(whole_report: Path, page: Page) -> None:
    assert len(pictures(whole_report.read_text(encoding="utf-8"))) == 4
    titles = [
        "Accuracy on 40 test images",
        "The file to ship",
        "Accuracy by class",
        "Confusions",
        "Confusion matrix",
        "Calibration",
        "Exported files",
        "Speed",
        "Training",
        "How it was made",
    ]
    places = [page.text.find(title) for title in titles]
    assert -1 not in places
    assert places == sorted(places)
    assert "To add it to the next report" not in page.text


def test_a_page_says_which_models_were_measured_on_how_many_images(page: Page) -> None:
    assert "student (ViT-B-16, promptkd) · 4 classes · 40 test images" in page.text
    assert "zero-shot CLIP (student's)" in page.text


def test_the_shares_that_scores_assume_and_the_ridge_probe_are_told(make_run: MakeRun) -> None:
    run = make_run(only="eval")
    balance = {"prior": "uniform", "strength": 1.0, "offsets": {}, "n_images": 9, "images": "nine"}
    run.logit_adjustment.write_text(json.dumps(balance), encoding="utf-8")
    (run.path / "references.json").write_text('{"ridge": 61.26, "trained": 50.0}')
    verdict = verdict_lines(run)
    assert "Its scores assume equal shares of the classes." in verdict[-2]
    assert "ridge regression on the teacher's features, by leave-one-out, 61.3 %" in verdict[-1]


def test_a_page_loads_nothing_and_runs_nothing(whole_report: Path, page: Page) -> None:
    assert "script" not in page.tags
    assert not [key for key in page.attributes if key.startswith("on")]
    for source in page.sources:
        assert source.startswith(("data:image/", "#"))
    assert any(source.startswith("data:image/jpeg") for source in page.sources)  # worst images
    for picture in pictures(whole_report.read_text(encoding="utf-8")):
        for element in picture.iter():
            for name, value in element.attrib.items():
                if name.endswith("href"):
                    assert value.startswith(("#", "data:image/png"))


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
    run = make_run(only="eval artifact")
    speed = run_records(make_run(only="bench")).speed
    first = run_records(run).artifact
    assert first is not None
    (time,) = speed.rows[1].measurements
    timed = TimedFile("i8.onnx", "int8", "onnxruntime 1", 100.0, time, 1.0, None)
    machine = CpuMachine.this()
    keep_choice(first, CpuChoice(machine, "i8.onnx", "0" * 64, 1, (timed,), {}, "2026-01-02"))
    assert "1 ms for one image" in said(run)


def test_accuracies_on_other_test_images_are_not_in_one_table(make_run: MakeRun) -> None:
    run = make_run()
    other = make_run(only="eval")
    found = json.loads(other.evaluation.read_text(encoding="utf-8"))
    for result in found.values():
        result["images_hash"] = "of others"
    other.evaluation.write_text(json.dumps(found), encoding="utf-8")
    own = json.loads(run.evaluation.read_text(encoding="utf-8"))
    own["student"]["images_hash"] = own["zeroshot"]["images_hash"] = "of these"
    run.evaluation.write_text(json.dumps(own), encoding="utf-8")
    comparison = make_chapters([run_records(run), run_records(other)])[0]
    first, second = comparison.sections[0].blocks  # of each, the last row is of no run
    assert [row[0].partition(":")[0] for row in first.rows[:-1]] == ["tiny/01", "tiny/01"]
    assert [row[0].partition(":")[0] for row in second.rows[:-1]] == ["tiny/02", "tiny/02"]


def test_a_model_that_two_runs_share_is_one_row(make_run: MakeRun) -> None:
    first = make_run(only="eval")
    second = make_run(only="eval")
    found = json.loads(second.evaluation.read_text(encoding="utf-8"))
    found["student"] = {**found["zeroshot"]}
    second.evaluation_details.unlink()
    second.evaluation.write_text(json.dumps(found), encoding="utf-8")
    table: Any = make_chapters([run_records(first), run_records(second)])[0].sections[0].blocks[0]
    assert [row[0].partition(" (")[0] for row in table.rows] == [
        "tiny/01: zero-shot CLIP",
        "tiny/01: student",
        "tiny/02: student",
        "always the most frequent class",
    ]


@pytest.fixture
def compared(make_run: MakeRun) -> RunFolder:
    """A run whose student is right on 40 % of 40 images, its teacher on 80 %, CLIP on 30 %.

    Its exported files passed their gates.
    """
    run = make_run()
    run.evaluation_details.unlink()
    found = json.loads(run.evaluation.read_text(encoding="utf-8"))
    student = found["student"]
    found["teacher"] = {**student, "all": 80.0, "per_class": {}}
    found["zeroshot"] = {**student, "all": 30.0, "per_class": {}}
    found["student"] = {**student, "all": 40.0, "per_class": dict.fromkeys(student["per_class"])}
    run.evaluation.write_text(json.dumps(found), encoding="utf-8")
    record = json.loads(run.provenance.read_text(encoding="utf-8"))
    record["summary"] = {"gmacs": 0.5, "teacher_gmacs": 43.0}
    run.provenance.write_text(json.dumps(record), encoding="utf-8")
    speed = json.loads((run.path / "bench/01.json").read_text(encoding="utf-8"))
    speed["rows"][1] |= {"gate": "passed", "model": "model.onnx"}
    (run.path / "bench/01.json").write_text(json.dumps(speed), encoding="utf-8")
    artifact = run_records(run).artifact
    replace(artifact, files=tuple(replace(file, gate="passed") for file in artifact.files)).save()
    return run


def test_what_was_kept_of_the_teacher_is_the_headline(compared: RunFolder) -> None:
    assert verdict_lines(compared) == [
        "The student is right on 40.0 % of 40 test images (95 % interval: 26 to 55 %), 10.0 points"
        " above zero-shot CLIP.",
        "It keeps 50 % of its teacher's accuracy, and needs 86x fewer operations.",
        "model.onnx passed its gate: 2 MB, a call takes 1 ms.",
    ]


def test_accuracies_on_other_images_are_not_compared_in_the_headline(compared: RunFolder) -> None:
    found = json.loads(compared.evaluation.read_text(encoding="utf-8"))
    found["teacher"]["n_images"] += 1
    found["zeroshot"]["n_images"] += 1
    compared.evaluation.write_text(json.dumps(found), encoding="utf-8")
    assert verdict_lines(compared) == [
        "The student is right on 40.0 % of 40 test images (95 % interval: 26 to 55 %).",
        "It needs 86x fewer operations than its teacher.",
        "model.onnx passed its gate: 2 MB, a call takes 1 ms.",
    ]


def test_the_headline_says_what_an_accuracy_does_not_count_of_the_exported_classes(
    compared: RunFolder,
) -> None:
    artifact = run_records(compared).artifact
    replace(
        artifact,
        class_names=artifact.class_names[1:],
        none_of_these=NoneOfThese("mahalanobis", "none.safetensors", 95.0, "10 images", 10),
    ).save()
    assert verdict_lines(compared)[-2:] == [
        "The accuracy is not that of the 3 exported classes.",
        'The accuracy does not count "none", which about 5 % of usual images get.',
    ]


def first_right(percent: float, n_images: int) -> str:
    """`EvalDetails.right` of a model that is right on the same images as a worse one, and more."""
    n_right = round(percent * n_images / 100)
    bits = (1 << n_right) - 1  # one bit an image, and the lowest n_right are set
    return f"{bits:x}"


@dataclass(frozen=True)
class Score:
    """How often a model is right, in percent.

    Attributes:
        all: over all images.
        mean: over classes, of which there are two.
    """

    all: float
    mean: float

    @property
    def per_class(self) -> dict[str, float]:
        return {"a": 2 * self.mean - self.all, "b": self.all}


@dataclass(frozen=True)
class Loss:
    """A student that loses against something, and what the headline says.

    Attributes:
        name: what it loses against, in words.
        largest_class_percent: the share of the most frequent class.
        headline: how the headline begins, after "The student".
    """

    name: str
    student: Score
    zero_shot: Score
    teacher: Score
    largest_class_percent: float
    headline: str


LOSSES = [
    Loss(
        name="below zero-shot CLIP",
        student=Score(all=30, mean=40),
        zero_shot=Score(all=30.5, mean=40),
        teacher=Score(all=20, mean=20),
        largest_class_percent=10,
        headline="is 0.5 points below zero-shot CLIP: do not use it",
    ),
    Loss(
        name="below zero-shot CLIP over all images, and not in the mean over classes",
        student=Score(all=30, mean=40),
        zero_shot=Score(all=35, mean=20),
        teacher=Score(all=20, mean=20),
        largest_class_percent=10,
        headline="is right on 30.0 % of 40 test images (95 % interval: 18 to 45 %), 5.0 points"
        " below zero-shot CLIP, and 20.0 points above it in the mean over classes",
    ),
    Loss(
        name="below the most frequent class",
        student=Score(all=50, mean=50),
        zero_shot=Score(all=20, mean=20),
        teacher=Score(all=45, mean=45),
        largest_class_percent=71,
        headline="is right on 50.0 % of 40 test images (95 % interval: 35 to 65 %), 30.0 points"
        " above zero-shot CLIP, 21.0 points below always predicting the most frequent class.\n"
        "It is as good as its teacher, as far as 40 images show",
    ),
    Loss(
        name="a teacher below its student",
        student=Score(all=50, mean=50),
        zero_shot=Score(all=20, mean=20),
        teacher=Score(all=32.5, mean=45),
        largest_class_percent=10,
        headline="is right on 50.0 % of 40 test images (95 % interval: 35 to 65 %), 30.0 points"
        " above zero-shot CLIP.\n"
        "It is 17.5 points (7 images) above its teacher",
    ),
]


@pytest.mark.parametrize("case", LOSSES, ids=lambda case: case.name)
def test_a_loss_is_not_congratulated_on(make_run: MakeRun, case: Loss) -> None:
    run = make_run()
    found = json.loads(run.evaluation.read_text(encoding="utf-8"))
    details = json.loads(run.evaluation_details.read_text(encoding="utf-8"))
    measured = {**found["student"], "largest_class_percent": case.largest_class_percent}
    scores = {"student": case.student, "zeroshot": case.zero_shot, "teacher": case.teacher}
    for name, score in scores.items():
        found[name] = {**measured, "all": score.all, "per_class": score.per_class}
        details[name] = {**details["student"], "right": first_right(score.all, 40)}
    run.evaluation_details.write_text(json.dumps(details), encoding="utf-8")
    run.evaluation.write_text(json.dumps(found), encoding="utf-8")
    assert headline_of(model_records(run)).startswith(f"The student {case.headline}")


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
        "eval.json",
        "eval_details.json",
        "metrics.jsonl",
        "recipe.yaml",
        "bench/01.json",
        "artifacts/01/artifact.json",
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


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory, build_run: MakeRun) -> str:
    """The page about three runs, the third of which was measured on another machine."""
    folder = tmp_path_factory.mktemp("comparison")
    runs = [
        build_run(folder, only="eval bench"),
        build_run(folder, only="bench"),
        build_run(folder, only="bench", cpu="B"),
    ]
    written = write_report([run_records(run) for run in runs], output=None)
    return written.read_text(encoding="utf-8")


def test_several_runs_are_compared_first(comparison: str) -> None:
    page = Page(comparison)
    assert page.text.index("3 runs compared") < page.text.index("How it was made")
    assert "tiny/01: student" in page.text
    assert "tiny/02: i8.onnx" in page.text


def test_speed_on_another_machine_is_not_compared(comparison: str) -> None:
    said = "Measured on another machine, so shown only in its chapter: tiny/03."
    assert said in Page(comparison).text


def test_each_place_of_a_page_has_its_own_id_and_every_link_leads_to_one(comparison: str) -> None:
    ids = re.findall(r' id="([^"]+)"', comparison)
    assert len(set(ids)) == len(ids)
    links = {source[1:] for source in Page(comparison).sources if source.startswith("#")}
    assert links <= set(ids)


def test_runs_of_one_name_in_two_folders_have_chapters_of_their_own(make_run: MakeRun) -> None:
    run = make_run(only="bench")
    twin = RunFolder(shutil.copytree(run.path, run.root / "other/tiny/01"), "student")
    chapters = make_chapters([run_records(run), run_records(twin)])
    assert len({chapter.anchor for chapter in chapters}) == 3  # and the comparison


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


def unlabeled_chapter(make_run: MakeRun) -> Chapter:
    """Of a run without labels, with 14 classes; the teacher names the first one alone."""
    names = [f"class {number:02}" for number in range(14)]
    run = make_run(names, only="")
    found = UnlabeledResult(
        n_images=105,
        images="105 of 105 images of data.unlabeled",
        images_hash="hash",
        agreement_percent=75.0,
        confidence_percent=60.0,
        teacher_confidence_percent=66.0,
        predicted={name: number for number, name in enumerate(names, start=1)},
        teacher_predicted={names[0]: 105},
        n_classes=14,
        samples=(SampleImage("0.png", ((names[0], 60.0),), names[1]),),
    )
    run.unlabeled_evaluation.write_text(json.dumps(found.to_dict()), encoding="utf-8")
    (chapter,) = make_chapters([run_records(run)])
    return chapter


def test_without_labels_agreement_is_told_and_that_it_does_not_suffice_to_deploy(
    make_run: MakeRun,
) -> None:
    second, first = unlabeled_chapter(make_run).verdict
    assert first == "The student agrees with its teacher on 75 % of 105 images."
    assert second.startswith("Whether to deploy it is not known: put labeled images into")


def test_without_labels_the_teachers_predictions_stand_beside(make_run: MakeRun) -> None:
    sections = {one.title: one.blocks for one in unlabeled_chapter(make_run).sections}
    facts: Any
    table: Any
    cards: Any
    facts, table = sections["Without labels"]
    assert ["teacher agrees", "75.00 %"] in facts.rows
    assert table.rows[0] == ["class 13", "14", "0"]
    assert table.caption == "The 12 most frequent of 14."
    (cards,) = sections["Images"]
    assert cards.cards[0].lines == ["class 00, 60\u00a0%", "teacher: class 01"]


# On what condition to deploy


@dataclass(frozen=True)
class Answers:
    """Test images of one class that a student gives one answer for."""

    n: int
    of: str
    answered: str


def said_of(
    run: RunFolder,
    *answers: Answers,
    most_frequent_percent: float = 60.0,
    labels_alone_percent: float = 0.0,
) -> str:
    """The verdict on a student of three classes that gives these answers.

    The other two are how often the most frequent class would be right, and how often the same
    network is that was trained on labels alone.
    """
    names = ("cat", "fox", "owl")
    n_images = sum(one.n for one in answers)
    per_class: dict[str, float | None] = {}
    for name in names:
        of_class = [one for one in answers if one.of == name]
        n = sum(one.n for one in of_class)
        n_right = sum(one.n for one in of_class if one.answered == name)
        per_class[name] = 100 * n_right / n if n else None
    confusion = [(names.index(one.of), names.index(one.answered), one.n) for one in answers]
    details = EvalDetails(names, n_images, tuple(confusion), ())
    student = replace(
        read_evaluation(run)["student"],
        all=details.accuracy_percent,
        largest_class_percent=most_frequent_percent,
        per_class=per_class,
    )
    results = {"student": student, "labels_alone": replace(student, all=labels_alone_percent)}
    all_details = {
        name: replace(details, right=first_right(result.all, n_images))
        for name, result in results.items()
    }
    verdict = verdict_of(replace(model_records(run), results=results, details=all_details))
    assert verdict is not None
    return verdict.text


def test_a_verdict_names_the_weakest_class_and_those_that_no_test_image_shows(
    make_run: MakeRun,
) -> None:
    """The accuracy of owls is unknown, and not 0."""
    verdict = said_of(
        make_run(),
        Answers(8, of="cat", answered="cat"),
        Answers(2, of="cat", answered="fox"),
        Answers(1, of="fox", answered="cat"),
        Answers(1, of="fox", answered="fox"),
    )
    assert verdict == (
        "Deploy it if 75.0 % right is enough, and 50 % of its weakest class, fox (1 of 2 images;"
        " 95 % interval: 9 to 91 %). More test images would tell more. No test image shows"
        ' "owl".'
    )


def test_a_verdict_on_few_images_that_are_all_right_is_the_end_of_the_interval(
    make_run: MakeRun,
) -> None:
    verdict = said_of(
        make_run(),
        Answers(8, of="cat", answered="cat"),
        Answers(1, of="fox", answered="fox"),
        Answers(1, of="owl", answered="owl"),
    )
    assert verdict == (
        "Deploy it if 72.2 % right is enough: 10 images, all of them right, cannot show more (95 %"
        " interval)."
    )


def test_a_verdict_on_many_images_needs_no_interval(make_run: MakeRun) -> None:
    verdict = said_of(
        make_run(),
        Answers(2000, of="cat", answered="cat"),
        Answers(1000, of="cat", answered="fox"),
        Answers(9, of="fox", answered="fox"),
    )
    expected = "66.8 % right is enough, and 67 % of its weakest class, cat (2,000 of 3,000 images)."
    assert expected in verdict


def test_a_student_that_predicts_one_class_is_not_to_be_deployed(make_run: MakeRun) -> None:
    verdict = said_of(
        make_run(),
        Answers(8, of="cat", answered="cat"),
        Answers(2, of="fox", answered="cat"),
    )
    assert "Do not deploy it: it predicts one class" in verdict


def test_a_student_below_the_most_frequent_class_is_told_of(make_run: MakeRun) -> None:
    verdict = said_of(
        make_run(),
        Answers(5, of="cat", answered="cat"),
        Answers(4, of="cat", answered="fox"),
        Answers(1, of="fox", answered="fox"),
        most_frequent_percent=80.0,
    )
    assert "always predicting the most frequent" in verdict


def test_test_images_of_one_class_are_told_of(make_run: MakeRun) -> None:
    verdict = said_of(
        make_run(),
        Answers(5, of="fox", answered="fox"),
        Answers(5, of="fox", answered="cat"),
    )
    assert "all test images are of one class, fox." in verdict


def test_a_student_that_labels_alone_train_better_is_told_of(make_run: MakeRun) -> None:
    verdict = said_of(
        make_run(),
        Answers(50, of="cat", answered="cat"),
        Answers(40, of="cat", answered="fox"),
        Answers(10, of="fox", answered="fox"),
        most_frequent_percent=40.0,
        labels_alone_percent=90.0,
    )
    assert "labels alone: 90.0 % right. Train it with" in verdict


def test_a_loss_against_labels_alone_that_may_be_chance_is_not_told_of(make_run: MakeRun) -> None:
    """6 of 10 images are no fewer than 9, by chance."""
    verdict = said_of(
        make_run(),
        Answers(5, of="cat", answered="cat"),
        Answers(4, of="cat", answered="fox"),
        Answers(1, of="fox", answered="fox"),
        most_frequent_percent=40.0,
        labels_alone_percent=90.0,
    )
    assert verdict.startswith("Deploy it if")


def test_a_class_that_the_teacher_predicts_for_no_unlabeled_image_is_told_of(
    make_run: MakeRun,
) -> None:
    run = make_run()
    record = json.loads(run.provenance.read_text())
    record["summary"]["closed_form"] = {"lambda": 1.0, "unseen_classes": ["fox"]}
    run.provenance.write_text(json.dumps(record))
    verdict = said_of(
        run,
        Answers(8, of="cat", answered="cat"),
        Answers(1, of="fox", answered="fox"),
        Answers(1, of="fox", answered="cat"),
        Answers(1, of="owl", answered="owl"),
    )
    assert verdict.endswith(' more. The teacher predicts "fox" for no unlabeled image: add images.')


# The file to ship


@pytest.fixture
def to_ship(make_run: MakeRun) -> RunFolder:
    """A run with an artifact, and with the cost of its student and teacher."""
    run = make_run(only="artifact")
    record = json.loads(run.provenance.read_text(encoding="utf-8"))
    record["summary"] = {
        "gmacs": 1.0,
        "teacher_gmacs": 2.0,
        "parameters": 3,
        "teacher_parameters": 2,
    }
    run.provenance.write_text(json.dumps(record), encoding="utf-8")
    return run


def end_of_headline(run: RunFolder, *files: ModelFile) -> str:
    """The lines about the files, of an artifact that has these."""
    replace(run_records(run).artifact, files=files).save()
    headline = str(headline_of(model_records(run)))
    cost = "needs 2.0x fewer operations but 1.5x more weights than its teacher.\n"
    assert cost in headline
    return headline.partition(cost)[2]


def with_agreement(file: ModelFile, parity: ParityResult, percent: float) -> ModelFile:
    """A file that agrees with the student on a share of the images, with finite scores."""
    return replace(file, parity=replace(parity, agreement_percent=percent, n_nonfinite=0))


def test_the_headline_names_the_file_to_ship_and_one_for_a_cpu_that_missed_its_gate(
    to_ship: RunFolder,
) -> None:
    plain, int8 = run_records(to_ship).artifact.files
    assert int8.parity is not None
    end = end_of_headline(
        to_ship,
        replace(with_agreement(plain, int8.parity, 100.0), gate="passed"),
        replace(int8, name="gpu.onnx", device="gpu", gate="passed"),
        replace(with_agreement(int8, int8.parity, 97.4), gate="missed"),
    )
    assert end == (
        "model.onnx passed its gate: 2 MB, it agrees with the student on 100.0 % of 40 images.\n"
        "i8.onnx (97.40 %) missed its gate, and is used only if you ask for that precision."
    )


def test_a_file_for_gpus_is_not_the_one_to_ship_for_a_cpu(to_ship: RunFolder) -> None:
    _, int8 = run_records(to_ship).artifact.files
    assert int8.parity is not None
    end = end_of_headline(
        to_ship,
        replace(with_agreement(int8, int8.parity, 97.4), gate="passed"),
        replace(int8, name="gpu.onnx", device="gpu", gate="passed"),
    )
    expected = "i8.onnx passed its gate: 1 MB, it agrees with the student on 97.4 % of 40 images."
    assert end == expected


def test_a_file_without_finite_scores_missed_its_gate_for_that(to_ship: RunFolder) -> None:
    _, int8 = run_records(to_ship).artifact.files
    assert end_of_headline(to_ship, replace(int8, gate="missed")) == (
        "i8.onnx (NaN or infinity for 1 image) missed its gate, and is used only if you ask for"
        " that precision."
    )


@pytest.fixture
def worse_file(make_run: MakeRun) -> RunFolder:
    """A run of cats and foxes whose file to ship is right on 60 % of the student's images."""
    run = make_run(["cat", "fox"])
    student = read_evaluation(run)["student"]
    assert student.n_images == 20
    artifact = run_records(run).artifact
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
    return run


def records_of_the_student_alone(run: RunFolder) -> ModelRecords:
    student = replace(read_evaluation(run)["student"], largest_class_percent=40.0)
    return replace(model_records(run), results={"student": student})


def test_the_headline_is_about_the_file_to_ship_where_it_answers_otherwise(
    worse_file: RunFolder,
) -> None:
    lost = read_evaluation(worse_file)["student"].all - 60
    assert str(headline_of(records_of_the_student_alone(worse_file))).startswith(
        "The file to ship, i8.onnx, is right on 60.0 % of 20 test images (95 % interval: 39 to"
        f" 78 %), {lost:.1f} points below the student before export."
    )


def test_the_verdict_is_about_the_file_to_ship_where_it_answers_otherwise(
    worse_file: RunFolder,
) -> None:
    verdict = verdict_of(records_of_the_student_alone(worse_file))
    assert verdict.text.startswith(
        "Deploy it if 60.0 % right is enough, and 50 % of its weakest class, fox (5 of 10 images;"
    )


def test_the_accuracy_by_class_has_a_column_of_the_file_to_ship_where_it_answers_otherwise(
    worse_file: RunFolder,
) -> None:
    table = r"Accuracy by class.*?'file to ship', 'student.*?\['fox', '10', '50.00'"
    assert re.search(table, said(worse_file))


def test_a_file_that_was_compared_on_other_images_is_not_set_beside_the_student(
    worse_file: RunFolder,
) -> None:
    artifact = run_records(worse_file).artifact
    (file,) = artifact.files
    assert file.parity is not None
    others = replace(file.parity, images_hash="1" * 64)
    replace(artifact, files=(replace(file, parity=others),)).save()
    accuracy = read_evaluation(worse_file)["student"].all
    headline = str(headline_of(records_of_the_student_alone(worse_file)))
    assert headline.startswith(f"The student is right on {accuracy:.1f} %")


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
    same = WorstImage("0.png", "cat", "cat", 0.00004), WorstImage("0.png", "cat", "cat", None)
    unchanged = replace(int8, parity=replace(int8.parity, worst=same))
    assert changed_cards(records.artifact, unchanged, records.recipe) is None


def test_an_image_of_a_smoke_set_is_found_by_its_number(make_run: MakeRun, tmp_path: Path) -> None:
    artifact = run_records(make_run(["cat", "dog"], only="artifact")).artifact
    smoke = artifact.path / SMOKE_SET
    pixels = np.zeros((3, 32, 32, 3), np.uint8)
    pixels[1] = 50
    pixels[2] = 100
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
    details = read_details(run)["student"]
    results = read_evaluation(run)["student"]
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
        "Wrong",
        "Lowest confidence",
        "Right",
    ]
    assert right.cards[0].lines == ["cat, 75\u00a0%", "right", "teacher: cat"]
    assert first_pixel(right.cards[0].thumbnail) == [0, 40, 200]
    assert wrong.cards[0].lines == ["cat, 60\u00a0%", "is dog", "teacher: dog"]
    assert first_pixel(wrong.cards[0].thumbnail) == [90, 40, 200]
    assert unsure.cards[0].thumbnail is None
