"""Pseudo-labels of unlabeled images.

`labels` writes, reads and scores them, `rounds.train_rounds` trains on them in rounds. How a method
chooses them is in `kdedge.data.pseudo_labels` and the method's file.
"""
