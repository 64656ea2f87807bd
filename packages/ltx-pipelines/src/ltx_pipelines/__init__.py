"""From a request to a clip: plans, the engine, memory policy, media and the command line."""
