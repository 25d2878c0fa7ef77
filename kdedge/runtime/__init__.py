"""What runs on the device: no torch here."""
