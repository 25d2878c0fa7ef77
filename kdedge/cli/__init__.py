"""The commands, one file each: they parse arguments, call the API and print."""
