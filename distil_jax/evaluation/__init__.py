"""What shows that it works: the quickstart, held-out measures, tables."""
