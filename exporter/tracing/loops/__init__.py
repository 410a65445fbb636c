"""Python loops over tokens, which every tracer unrolls, are found again and become one scan."""
