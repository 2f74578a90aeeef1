"""Journalled clicks become rows in PostgreSQL, in batches."""
