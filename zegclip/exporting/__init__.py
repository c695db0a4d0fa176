"""Pictures and class maps in the formats of other tools."""
