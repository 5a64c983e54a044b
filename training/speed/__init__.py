"""How fast systems are, each in a process of its own."""
