"""Tells people things, by email and SMS."""
