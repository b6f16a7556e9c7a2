"""The command `pndm-fast`."""
