"""A sweep from the command line: made from another, estimated, called, watched and summed up. No torch."""
