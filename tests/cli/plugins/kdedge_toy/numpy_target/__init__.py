"""A target: the folded model's weights as NumPy arrays, and NumPy to run them."""
