"""The names of other packages for the same functions, so that a program runs when its import is changed."""
