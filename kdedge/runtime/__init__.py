"""What runs on the device, without torch."""
