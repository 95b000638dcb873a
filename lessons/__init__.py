"""The course: sources, their builder, and the kit that the notebooks import."""
