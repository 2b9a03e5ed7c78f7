"""The meters: agents read over HTTP, and the conditions around a measurement."""
