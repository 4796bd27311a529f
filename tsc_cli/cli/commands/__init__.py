"""One module a command, in folders by what they are about."""
