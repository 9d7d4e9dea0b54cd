"""What GDAL alone can read: the slow path, as exact as the fast one."""
