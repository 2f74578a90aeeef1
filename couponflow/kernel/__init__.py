"""What every role stands on; knows nothing of commerce."""
