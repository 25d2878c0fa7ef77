"""A package from outside that joins kdedge by entry points."""
