"""How data sets lie on disk: each layout lists the cases of a folder."""
