"""What others wrote and is opened as it is: Zarr stores, Kerchunk references, Icechunk repositories."""
