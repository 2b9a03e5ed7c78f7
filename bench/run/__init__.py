"""`powerbench run`: scenarios carried out, recorded and judged."""
