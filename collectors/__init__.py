"""One module a source. Each has Options, METRICS and open_collector(); see core/model.py."""
