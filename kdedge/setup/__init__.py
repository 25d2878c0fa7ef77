"""From a recipe to what a run is made of: classes, images, method, backbone, device."""
