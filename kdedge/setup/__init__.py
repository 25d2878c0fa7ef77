"""Resolves the parts of a run that a recipe names, before any model is built.

`role.set_up_role` resolves a role's method, classes and backbone; `images.RecipeImages` loads its
images; `workspace.Workspace` holds a command's folders, device and caches.
"""
