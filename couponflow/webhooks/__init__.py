"""What outside services tell us: verified, written down, and turned into messages of our own."""
