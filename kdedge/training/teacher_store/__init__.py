"""Teacher features per image and view, kept on disk.

`store.TeacherStore` reads and writes the files, `fill.StoreFiller` computes missing features.
"""
