"""What people say about latents, in one SQLite file of the home: labels, notes, stars, lists, and their history."""
