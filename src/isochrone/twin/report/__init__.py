"""Reports of experiments: one page of HTML that needs nothing else, and tables for documents."""
