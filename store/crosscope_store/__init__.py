"""Published things on a store that several machines share. Knows names and files, and neither models nor tables."""
