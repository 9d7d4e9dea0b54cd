"""Raster algebra as pure functions on in-memory blocks; no I/O, no xarray, no Dask."""
