"""Stage 1, data preparation: a file becomes a table, a table becomes splits."""
