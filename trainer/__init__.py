"""Store in, runs and predictions out."""
