# Written by client/generate.py from _async/__init__.py. Do not edit.
