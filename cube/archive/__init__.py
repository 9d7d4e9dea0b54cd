"""From an archive, whatever it is named by, to the members of one cube."""
