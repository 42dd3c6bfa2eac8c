"""Controls of a claimed gain: what else, without the method's idea, gives as much."""
