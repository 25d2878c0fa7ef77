"""The recipe: schema, reading, explaining what is wrong."""
