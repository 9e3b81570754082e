"""The script that Streamlit runs. It is compiled anew for every session, so it is short."""

from crosscope.app import frame

frame.draw()
