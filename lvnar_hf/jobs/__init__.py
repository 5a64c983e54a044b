"""Work on whole files: in shards that processes claim, killed and continued at will."""
