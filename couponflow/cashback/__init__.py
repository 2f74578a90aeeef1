"""Keeps what affiliate networks and payout providers report."""
