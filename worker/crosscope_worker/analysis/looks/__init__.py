"""Where two models differ, before any dictionary is trained. Knows no files and no jobs."""
