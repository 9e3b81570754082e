"""What `make docs` adds to the pages of docs/: reference tables read from the code, checked links."""
