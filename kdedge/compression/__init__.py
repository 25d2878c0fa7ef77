"""Compressed students: a trained student, folded, and trained on in a smaller form.

The student's image encoder is folded first (`kdedge.fold`), so that what is trained are the layers
that the device runs. `sparsity` fixes zeros in their weights. `student` puts the encoder back into
the student.
"""
