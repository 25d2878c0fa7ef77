"""Makes one HTML file about runs from their records, without loading a model."""
