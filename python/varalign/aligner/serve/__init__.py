"""A search over a folder as a page and an HTTP interface."""
