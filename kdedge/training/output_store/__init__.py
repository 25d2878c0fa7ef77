"""A frozen model's outputs per image and view, kept on disk.

`store.OutputStore` reads and writes the files, `fill.StoreFiller` computes missing outputs.
"""
