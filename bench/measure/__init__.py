"""`powerbench measure`: any command, and the energy it took."""
