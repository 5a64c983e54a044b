"""The console command `lvnar`, a module a command; what they import takes seconds, so they do it when they run."""
