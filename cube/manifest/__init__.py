"""The columnar tables of an archive's headers: written whole, opened lazily, never changed in place."""
