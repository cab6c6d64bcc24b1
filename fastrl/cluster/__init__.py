"""Several machines that sample one run, by Ray; nothing imports it without `cluster`."""
