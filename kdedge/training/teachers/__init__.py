"""A student's frozen teacher: one file a kind.

`model.ModelTeacher` is a run of kdedge, trained for this student or before; `file.FileTeacher` is a
file of probabilities. What a student asks of either is `methods.protocol.Teacher`.
"""

from kdedge.training.teachers.file import FileTeacher
from kdedge.training.teachers.model import ModelTeacher

__all__ = ["AnyTeacher", "FileTeacher", "ModelTeacher"]

AnyTeacher = ModelTeacher | FileTeacher
