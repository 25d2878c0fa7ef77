"""From a trained model to files that run on the device, and the proof that they answer alike."""
