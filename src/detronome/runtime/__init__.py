"""What the machine offers: devices, precision, seeding, memory, files, signals, clocks."""
