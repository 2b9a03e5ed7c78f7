"""`powerbench analyze`: what results say, as tables and files."""
