"""Several teachers of one student: one file a kind of teacher.

`model.ModelTeacher` is a run of kdedge, trained for this student or before; `file.FileTeacher` is a
file of probabilities. `combine` has the equations, and `ensemble.Ensemble` puts teachers together.
"""
