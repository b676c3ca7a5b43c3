"""Stage 5, deployment: classifier and report become a bundle, and the bundle answers."""
