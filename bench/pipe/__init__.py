"""`powerbench pipe`: an encoder's progress, passed on to an agent."""
