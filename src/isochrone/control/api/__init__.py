"""The Control API: HTTP and JSON over the book, one file per resource."""
