"""From security knowledge to batches: pairs, masks, trees, shards and the tf.data feed."""
