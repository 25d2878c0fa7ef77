"""One HTML file about runs: from their records alone, with no model loaded."""
