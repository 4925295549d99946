"""From results to pages, charts and the report."""
