"""From one text source per lesson to notebooks, slides and instructor notes. `python -m lessons build`."""
