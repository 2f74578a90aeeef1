"""Simulators of whoever calls the webhook intake, written from the providers' documents alone."""
