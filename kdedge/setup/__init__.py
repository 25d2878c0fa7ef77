"""From a recipe to what a run is made of, before anything is built.

`role.set_up_role` gives a role's method, classes and backbone, `data.RecipeData` its images,
`workspace.Workspace` is where a command works and what it has read.
"""
