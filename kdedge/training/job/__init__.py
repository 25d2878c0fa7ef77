"""What one run trains, and how it becomes a run folder."""
