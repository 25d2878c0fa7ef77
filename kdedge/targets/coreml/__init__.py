"""Core ML packages, for iPhones, iPads and Macs."""
