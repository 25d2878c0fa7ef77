"""An artifact behind HTTP: requests are joined to batches; a new artifact replaces the old one."""
