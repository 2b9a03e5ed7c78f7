"""`powerbench doctor`: what this machine can measure, what is missing, and how to fix it."""
