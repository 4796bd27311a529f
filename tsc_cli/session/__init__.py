"""A session of a model: capturing it, appending to it, going on with it."""
