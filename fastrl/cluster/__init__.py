"""Several machines that sample or learn one run, by Ray; nothing imports it without `cluster`."""
