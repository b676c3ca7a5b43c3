"""The same stages on many machines: Ray distributes, and nothing below knows it."""
