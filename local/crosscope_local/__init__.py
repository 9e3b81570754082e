"""All of crosscope on one machine: starts and watches its processes, which it knows by command line and address."""
