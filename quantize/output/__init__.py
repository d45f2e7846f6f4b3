"""The file that is written: its layout, header, checksums, journal, and its name at the end."""
