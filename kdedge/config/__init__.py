"""The recipe: its schema, its reader and its error messages."""
