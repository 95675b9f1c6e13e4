"""Files of columns: what leaves the book and can be read by anybody's tools."""
