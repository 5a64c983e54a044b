"""Tables, figures and cards, from results in JSON."""
