"""Static references to the tiles of an archive: what others open without us."""

from cube.references.kerchunk import to_kerchunk as to_kerchunk
