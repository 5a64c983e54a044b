"""A server of translations that speaks LibreTranslate's language, and the page on which refinement is watched."""
