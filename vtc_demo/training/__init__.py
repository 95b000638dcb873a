"""Recipes for everything shipped in assets/models. The commands are in `cli`."""
