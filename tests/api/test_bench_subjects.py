"""Which run a method's accuracy is from."""

from __future__ import annotations

import json
from pathlib import Path

from kdedge.api.bench_subjects import newest_baselines
from kdedge.runs.folder import RunFolder


def test_anewest_baselines_accuracy_is_that_of_its_run_that_finished_last(tmp_path: Path) -> None:
    for method, finished_at in (("coop", "2026-01-02"), ("coop", "2026-01-03"), ("vpt", None)):
        run = RunFolder.create(
            tmp_path,
            "tiny",
            role="baseline",
            recipe_text="name: tiny\n",
            provenance={"method": method},
        )
        if finished_at is not None:
            run.finish()
            record = json.loads(run.provenance.read_text()) | {"finished_at": finished_at}
            run.provenance.write_text(json.dumps(record))
    found = newest_baselines(tmp_path, "tiny")
    assert {method: run.path.name for method, run in found.items()} == {"coop": "02"}
    assert newest_baselines(tmp_path, "another") == {}
    first = tmp_path / "tiny" / "01" / "provenance.json"
    first.write_text(first.read_text().replace("2026-01-02", "2026-01-04"))
    assert newest_baselines(tmp_path, "tiny")["coop"].path.name == "01"
