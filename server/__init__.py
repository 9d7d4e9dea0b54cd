"""Cubes over HTTP: Zarr stores, the intake catalogue and health, as xpublish plugins."""
