"""One file a page; `catalogue.py` lists them."""
