"""The methods: one file each. The file's name is the name in recipes."""
