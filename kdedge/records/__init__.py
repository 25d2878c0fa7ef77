"""Records that commands write as JSON and read again, and small tables of them. Loads no torch.

`record.Record` is their base class, `evaluation` has accuracies and comparisons, `speed` the rows
of `kdedge bench`, `tables` the layout as text, Markdown and HTML.
"""
