"""Every route of the service, by what it is about; each calls the service and says nothing that is not HTTP."""
