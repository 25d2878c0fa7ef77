"""The demo's built-in CLIPs: complete weight sets, the ones that were trained, and good enough to be taught with."""

from __future__ import annotations

import numpy as np
import open_clip
import pytest
import torch

from kdedge.clip.backbone import Backbone, load_backbone, unit_length
from kdedge.clip.builtin import BUILTIN_MODELS, TOKEN_TABLE, builtin_model, draw_token_table
from kdedge.data.loader import evaluation_batches
from kdedge.data.sources._pictures import CLEAN, draw_picture
from kdedge.data.sources.synthetic import class_names, open_source
from kdedge.errors import RecipeError
