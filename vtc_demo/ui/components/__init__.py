"""Parts of the page that tabs put together: controls, cards, the composer."""
