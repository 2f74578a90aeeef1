"""A shopper's click on a tracked link becomes a redirect and a journal record."""
