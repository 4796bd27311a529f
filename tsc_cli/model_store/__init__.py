"""Models on this machine: where they are fetched from, how they are converted, under which names they are kept."""
