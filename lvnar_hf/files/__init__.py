"""Files: text by lines, and writing that is whole or not at all."""
