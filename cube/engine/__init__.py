"""Dask: the graph of a cube, its blocks, and clusters to run it on."""
