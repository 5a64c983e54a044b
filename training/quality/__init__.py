"""How good translations are, and where they are lost."""
