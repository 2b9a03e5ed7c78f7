"""The agent: reads joules and what used them, keeps the latest reading, serves it as text."""

__version__ = "0.1.0"
