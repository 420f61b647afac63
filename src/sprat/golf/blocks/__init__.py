"""What a golf's model may be built of beside a plain Qwen3, a file a block, each behind keys of the recipe."""
