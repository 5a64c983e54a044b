"""One training run: its steps, schedules, objective, log and states."""
