"""Accuracy on our world: records, tables, intervals. The commands are in `cli`."""
