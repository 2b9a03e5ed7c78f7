"""What everything else stands on: types, arithmetic, parsers. Imports nothing else of ours."""
