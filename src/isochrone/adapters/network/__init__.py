"""The live network: sockets of the operating system, and emulated distance on top of them."""
