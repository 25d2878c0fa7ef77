"""kdedge: make a big CLIP small enough for the edge, and prove what that cost."""

__version__ = "0.1.0"
