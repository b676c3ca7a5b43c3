"""Stage 2, re-architecting the LLM: backbone, pooling and head become an untrained classifier."""
