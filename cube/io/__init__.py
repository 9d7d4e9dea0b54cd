"""Every byte that crosses a network."""
