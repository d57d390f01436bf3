"""Mathematics with a known answer."""
