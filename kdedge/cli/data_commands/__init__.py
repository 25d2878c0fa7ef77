"""The commands of `kdedge data` for images of your own."""
