"""From files of events to sequences of tokens and times."""
