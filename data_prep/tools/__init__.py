"""Make a synthetic raw data set, and a contact sheet of a prepared one."""
