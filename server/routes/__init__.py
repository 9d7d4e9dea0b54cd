"""One resource a module, each an xpublish plugin."""
