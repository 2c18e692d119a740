"""An agent: trains in its own time, offers its parameters, buys what helps it, trains on."""
