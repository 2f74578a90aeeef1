"""How operators and other programs look at a running installation and tell it what to do."""
