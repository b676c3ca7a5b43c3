"""Stage 3, fine-tuning: an untrained classifier becomes a trained one."""
