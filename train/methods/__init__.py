"""One file per method; all see the same tokens, draws, metrics and selection rule."""
