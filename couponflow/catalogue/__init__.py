"""Merchants, offers and users: how they come in and what may be stored of them."""
