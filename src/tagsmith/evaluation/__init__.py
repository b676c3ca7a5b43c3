"""Stage 4, evaluation: a classifier is measured, and the report says what the numbers are worth."""
