"""The video encoders that a scenario can ask for: a table, and how what is asked of a row is spelt."""
