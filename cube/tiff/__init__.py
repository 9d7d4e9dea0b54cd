"""TIFF: the header of a file as a value, and the bytes of a tile to pixels."""
