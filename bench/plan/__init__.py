"""What a run is asked to do: scenarios, their order, and where they come from."""
