"""The additions of `make docs` to the pages of docs/: reference tables from the code, checked links."""
