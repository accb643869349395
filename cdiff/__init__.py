"""cdiff: finds where a segmentation model is weak and makes image + mask pairs aimed there."""

__version__ = "0.1.0"
