"""What codec klt is made of: the profile, its transform, the importance of tokens, and how symbols are coded."""
