from pathlib import Path

import pytest
import torch

from kdedge.setup.workspace import Workspace


def test_what_many_cells_have_in_common_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    workspace = Workspace(tmp_path, torch.device("cpu"))
    for message in ("list 1", "list 1", "list 2"):
        workspace.warn_once(message)
    assert caplog.messages == ["list 1", "list 2"]
