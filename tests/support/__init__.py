"""What the integration and fault tests share: the command line as a process, tables, file trees."""
