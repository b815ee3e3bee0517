"""Where Alertmanager sends by default: keeps alerts, shows them with their runbooks, notices when it hears no more."""
