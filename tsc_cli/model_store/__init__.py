"""Models on this machine: fetching, converting and naming them."""
