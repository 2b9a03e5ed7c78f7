"""What repeated windows say, and how surely."""
