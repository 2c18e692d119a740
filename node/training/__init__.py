"""How an agent gets better between trades: the plug-in protocol and the built-in trainers."""
