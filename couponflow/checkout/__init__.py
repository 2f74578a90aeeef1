"""Keeps orders, and applies what is reported of their payments, refunds, parcels and stock."""
