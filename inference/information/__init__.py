"""Information measures: of discrete sources and channels, and of what weights know about their training set."""
