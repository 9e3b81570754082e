"""`make bench-app`: how quick and how light the app is in a browser, beside an empty Streamlit app."""
