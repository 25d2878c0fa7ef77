"""The CLIP core: frozen backbones, prompted encoders, class vectors."""
