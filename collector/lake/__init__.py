"""The lake: DuckLake catalog and data files, the one module that opens the database."""
